/** What the server tells of every (layer, expert), decoded: levels of traffic, and the copies. */

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at += 1) bytes[at] = text.charCodeAt(at);
  return bytes;
}

export class ExpertMap {
  constructor() {
    this.placement = "";
    this.layers = this.experts = this.numCopies = 0;
    this.maxRows = 0;
    this.levels = new Uint8Array();
    /** Shard of each copy, primary first, -1 for none. */
    this.copies = new Int16Array();
  }

  /** Take an answer of /v1/cluster/experts; return the cells whose first copy changed shards. */
  take(told) {
    this.layers = told.num_moe_layers;
    this.experts = told.num_experts;
    this.maxRows = told.max_rows;
    this.levels = bytesOf(told.levels);
    if (told.copies === null) return [];
    const before = this.copies;
    const numBefore = this.numCopies;
    this.copies = new Int16Array(bytesOf(told.copies).buffer);
    this.numCopies = told.num_copies;
    this.placement = told.placement;
    if (before.length / numBefore !== this.size) return [];
    const moved = [];
    for (let cell = 0; cell < this.size; cell += 1) {
      if (before[cell * numBefore] !== this.primary(cell)) moved.push(cell);
    }
    return moved;
  }

  get size() {
    return this.layers * this.experts;
  }

  primary(cell) {
    return this.copies[cell * this.numCopies];
  }

  /** Return the shards that hold a cell. */
  holders(cell) {
    return [...this.copies.subarray(cell * this.numCopies, (cell + 1) * this.numCopies)].filter(
      (shard) => shard >= 0,
    );
  }

  /** Return the decayed rows of a cell, as exact as a byte tells. */
  rows(cell) {
    return this.maxRows * (this.levels[cell] / 255) ** 2;
  }

  /** Return each shard's share of all rows, by shard; -1 gathers what nobody holds. */
  shares() {
    const rows = [];
    let total = 0;
    for (let cell = 0; cell < this.size; cell += 1) {
      const here = this.levels[cell] ** 2;
      total += here;
      const place = this.primary(cell) + 1;
      rows[place] = (rows[place] ?? 0) + here;
    }
    return new Map(
      rows.map((here, place) => [place - 1, total ? here / total : 0]).filter(Boolean),
    );
  }
}
