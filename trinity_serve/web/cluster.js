/** The cluster view: asks once a second while it is seen, and hands out what it is told. */

import { ApiError, call, getJson } from "./api.js";
import { byId, confirmed, count, el, percent, setText } from "./dom.js";
import { EventLog } from "./events.js";
import { ExpertMap } from "./expertmap.js";
import { HeatMap } from "./heatmap.js";
import { askForKeys } from "./keydialog.js";
import { RankTable, ShardTable } from "./tables.js";
import { Watch } from "./watch.js";

const EVERY_MS = 1000;
const ORDERS = {
  kill: {
    title: "Kill shard",
    text: "Its process ends at once, as in a crash. Rows in flight are sent again; experts without a copy elsewhere wait until a new process has loaded them.",
    yes: "Kill",
  },
  drain: {
    title: "Drain shard",
    text: "The other shards take over what it holds, one expert at a time; then it ends and a new process takes its place.",
    yes: "Drain",
  },
};

export class Cluster {
  constructor(served) {
    this._map = new ExpertMap();
    this._heat = new HeatMap(this._map);
    this._shards = new ShardTable((order, shard) => this._order(order, shard));
    this._ranks = new RankTable();
    this._events = new EventLog();
    this._watch = new Watch(served, (error) => askForKeys(error));
    this._tiles = new Map();
    this._tokens = new Map();
    this._timer = null;
    this._isSeen = false;
    this._refused = false;
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.start();
    });
  }

  start() {
    if (byId("cluster").hidden) return;
    this._isSeen = true;
    if (this._timer === null) this._turn();
  }

  stop() {
    this._isSeen = false;
  }

  /** Ask again with other keys. */
  retry() {
    this._refused = false;
    if (this._isSeen) this.start();
  }

  async _turn() {
    this._timer = 0;
    const begun = performance.now();
    try {
      const known = encodeURIComponent(this._map.placement);
      const [status, experts] = await Promise.all([
        getJson("v1/cluster", { admin: true }),
        getJson(`v1/cluster/experts?known=${known}`, { admin: true }),
      ]);
      this._show(status, experts);
      this._tell("");
    } catch (error) {
      await this._failed(error);
    }
    if (!this._isSeen || document.hidden || this._refused) {
      this._timer = null;
      return;
    }
    this._timer = setTimeout(
      () => this._turn(),
      Math.max(100, EVERY_MS - (performance.now() - begun)),
    );
  }

  async _failed(error) {
    if (!(error instanceof ApiError)) throw error;
    this._tell(error.message);
    // Another server may answer next, with a placement of the same version.
    this._map.placement = "";
    if (error.wantsKey) this._refused = !(await askForKeys(error));
  }

  _tell(text) {
    setText(byId("cluster-problem"), text);
    byId("cluster-problem").hidden = !text;
  }

  _show(status, experts) {
    const moved = this._map.take(experts);
    if (moved.length) {
      this._heat.flash(moved);
      this._events.add(
        "note",
        `Placement ${this._map.placement}: ${count(moved.length)} experts changed shards`,
      );
    }
    const news = this._events.take(status);
    if (news.length) setText(byId("cluster-status"), news.join(". "));
    const speeds = this._speeds(status.ranks);
    this._heat.draw();
    this._shards.show(status.shards, this._map.shares(), status.can_change_shards);
    this._ranks.show(status.ranks, speeds);
    this._showTiles(status, speeds);
  }

  _speeds(ranks) {
    const now = performance.now() / 1000;
    const speeds = new Map();
    for (const { rank, generation_tokens: tokens } of ranks) {
      const [before, at] = this._tokens.get(rank) ?? [tokens, now - 1];
      speeds.set(rank, Math.max(0, (tokens - before) / (now - at)));
      this._tokens.set(rank, [tokens, now]);
    }
    return speeds;
  }

  _showTiles(status, speeds) {
    const ready = status.shards.filter((shard) => shard.state === "ready").length;
    const sum = (key) => status.ranks.reduce((total, rank) => total + rank[key], 0);
    const kv = Math.max(0, ...status.ranks.map((rank) => rank.kv_usage));
    this._tile(
      "Coverage",
      status.covered ? "complete" : `${count(status.num_uncovered)} missing`,
      status.covered ? "ready" : "dead",
    );
    this._tile(
      "Shards ready",
      `${ready} of ${status.target.num_shards}`,
      ready >= status.target.num_shards ? "ready" : "joining",
    );
    this._tile("Placement", status.placement);
    this._tile("Moves left", count(status.num_loads_left + status.num_frees_left));
    this._tile("Further copies", count(status.num_spares));
    this._tile("Running", count(sum("num_running")));
    this._tile("Waiting", count(sum("num_waiting")));
    this._tile("KV in use", percent(kv));
    this._tile("Tokens/s", count([...speeds.values()].reduce((total, speed) => total + speed, 0)));
  }

  _tile(name, text, state = "") {
    if (!this._tiles.has(name)) {
      const value = el("dd");
      this._tiles.set(name, value);
      byId("tiles").append(el("div", { class: "tile" }, el("dt", {}, name), value));
    }
    const value = this._tiles.get(name);
    setText(value, text);
    value.classList.toggle("state", Boolean(state));
    value.dataset.state = state;
  }

  async _order(order, { shard, incarnation }) {
    const { title, text, yes } = ORDERS[order];
    if (!(await confirmed(`${title} ${shard}?`, text, yes))) return;
    try {
      await call(`v1/cluster/shards/${shard}/${order}`, { body: { incarnation }, admin: true });
      this._watch.mark();
      this._events.add("note", `You ordered: ${order} shard ${shard}`);
    } catch (error) {
      await this._failed(error);
    }
  }
}
