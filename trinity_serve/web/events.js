/** What happened, read off the difference between one status of the pool and the next. */

import { byId, count, el } from "./dom.js";

const KEPT = 200;
const SAME_WITHIN_MS = 2500;

/** Return the events between two statuses as [kind, text]; kinds: good, bad, note. */
export function differences(before, now) {
  const events = [];
  const known = new Map(before.shards.map((shard) => [shard.shard, shard]));
  for (const shard of now.shards) {
    const old = known.get(shard.shard);
    const name = `Shard ${shard.shard}`;
    if (!old || old.incarnation !== shard.incarnation)
      events.push(["note", `${name}: a new process (${shard.incarnation}) is ${shard.state}`]);
    else if (old.state !== shard.state)
      events.push([shard.state === "ready" ? "good" : "note", `${name} is ${shard.state}`]);
    known.delete(shard.shard);
  }
  for (const gone of known.keys()) events.push(["note", `Shard ${gone} is gone`]);
  if (before.covered && !now.covered)
    events.push(["bad", `${count(now.num_uncovered)} experts have no shard; their rows wait`]);
  if (!before.covered && now.covered) events.push(["good", "Every expert has a shard again"]);
  const [old, operation] = [before.operation, now.operation];
  if (
    operation &&
    (old?.operation_id !== operation.operation_id || old.phase !== operation.phase)
  ) {
    events.push([
      "note",
      `Scale to ${operation.target.num_shards} shards: ${operation.phase}${operation.error ? ` (${operation.error})` : ""}`,
    ]);
  }
  return events.concat(rankDifferences(before.ranks, now.ranks));
}

function rankDifferences(before, now) {
  const [old, present] = [before, now].map((ranks) => new Set(ranks.map((rank) => rank.rank)));
  const came = [...present]
    .filter((rank) => !old.has(rank))
    .map((rank) => ["good", `Rank ${rank} joined`]);
  const left = [...old]
    .filter((rank) => !present.has(rank))
    .map((rank) => ["bad", `Rank ${rank} left`]);
  return came.concat(left);
}

export class EventLog {
  constructor() {
    this._before = null;
    this._failures = [];
  }

  /** Take the next status; return the texts of what is new. */
  take(now) {
    const events = this._before ? differences(this._before, now) : [];
    this._before = now;
    const failures = now.failures.filter((failure) => this._isNew(failure)).reverse();
    for (const { shard, incarnation, reason, seconds_ago } of failures) {
      this.add(
        "bad",
        `Shard ${shard} (${incarnation}): ${reason}`,
        Date.now() - 1000 * seconds_ago,
      );
    }
    for (const [kind, text] of events) this.add(kind, text);
    return [
      ...failures.map(({ shard, reason }) => `Shard ${shard}: ${reason}`),
      ...events.map(([, text]) => text),
    ];
  }

  _isNew({ shard, incarnation, reason, seconds_ago }) {
    const at = Date.now() - 1000 * seconds_ago;
    const key = `${shard}.${incarnation}.${reason}`;
    const known = this._failures.some(
      (each) => each.key === key && Math.abs(each.at - at) < SAME_WITHIN_MS,
    );
    if (!known) this._failures.push({ key, at });
    if (this._failures.length > KEPT) this._failures.shift();
    return !known;
  }

  add(kind, text, at = Date.now()) {
    const time = new Date(at);
    const shown = time.toLocaleTimeString("en-GB");
    const item = el(
      "li",
      { data: { kind } },
      el("time", { datetime: time.toISOString() }, shown),
      el("span", {}, text),
    );
    byId("events").prepend(item);
    while (byId("events").childElementCount > KEPT) byId("events").lastElementChild.remove();
  }
}
