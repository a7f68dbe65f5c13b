/** Shards and ranks as tables that are changed in place: focus and selection stay where they are. */

import { css, shardColour } from "./colours.js";
import { byId, button, count, el, percent, setText } from "./dom.js";

class Rows {
  constructor(box, caption, headings) {
    this._body = el("tbody");
    this._rows = new Map();
    const head = el(
      "tr",
      {},
      headings.map((heading) => el("th", { scope: "col" }, heading)),
    );
    const table = el(
      "table",
      {},
      el("caption", { class: "hidden" }, caption),
      el("thead", {}, head),
      this._body,
    );
    byId(box).append(
      el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": caption }, table),
    );
  }

  /** Show one row for each item; `make(item)` builds one, `fill(row, item)` changes it. */
  show(items, keyOf, make, fill) {
    const keys = new Set(items.map(keyOf));
    for (const [key, row] of this._rows) {
      if (!keys.has(key)) {
        row.root.remove();
        this._rows.delete(key);
      }
    }
    for (const item of items) {
      const key = keyOf(item);
      if (!this._rows.has(key)) {
        const row = make(item);
        this._rows.set(key, row);
        this._body.append(row.root);
      }
      fill(this._rows.get(key), item);
    }
  }
}

const bar = () => el("span", { class: "bar", "aria-hidden": "true" }, el("span"));

function setBar(node, share) {
  node.firstElementChild.style.width = `${Math.min(100, 100 * share)}%`;
}

export function showState(node, state) {
  node.dataset.state = state;
  setText(node, state);
}

export class ShardTable {
  /** `onOrder(order, shard)`: order is kill or drain. */
  constructor(onOrder) {
    this._onOrder = onOrder;
    this._dark = matchMedia("(prefers-color-scheme: dark)");
    this._rows = new Rows("shards", "Expert shards", [
      "Shard",
      "State",
      "Share of rows",
      "Experts",
      "Node",
      "Orders",
    ]);
  }

  show(shards, shares, canChange) {
    const fill = (row, shard) => this._fill(row, shard, shares.get(shard.shard) ?? 0, canChange);
    this._rows.show(
      shards,
      (shard) => shard.shard,
      (shard) => this._make(shard),
      fill,
    );
  }

  _make({ shard }) {
    const row = {
      state: el("span", { class: "state" }),
      name: el("span"),
      share: el("span", { class: "number" }),
      bar: bar(),
      held: el("span", { class: "number" }),
      node: el("span", { class: "quiet" }),
      swatch: el("span", { class: "swatch", "aria-hidden": "true" }),
    };
    row.orders = el(
      "div",
      { class: "row" },
      button("Drain", () => this._onOrder("drain", row.told), {
        class: "small",
        "aria-label": `Drain shard ${shard}`,
      }),
      button("Kill", () => this._onOrder("kill", row.told), {
        class: "small danger",
        "aria-label": `Kill shard ${shard}`,
      }),
    );
    const cells = [
      [row.swatch, row.name],
      row.state,
      [row.bar, row.share],
      row.held,
      row.node,
      row.orders,
    ];
    row.root = el(
      "tr",
      {},
      cells.map((cell, at) => el(at ? "td" : "th", at ? {} : { scope: "row" }, cell)),
    );
    return row;
  }

  _fill(row, told, share, canChange) {
    row.told = told;
    setText(row.name, String(told.shard));
    row.name.title = `incarnation ${told.incarnation}`;
    row.swatch.style.background = css(
      shardColour(told.shard, 255, this._dark.matches ? "dark" : "light"),
    );
    showState(row.state, told.state);
    setBar(row.bar, share);
    setText(row.share, percent(share));
    const [held, planned] = [told.num_experts_held, told.num_experts_planned].map(count);
    setText(row.held, held === planned ? held : `${held} of ${planned}`);
    setText(
      row.node,
      [told.label, told.node.length > 24 ? told.node.slice(0, 12) : told.node]
        .filter(Boolean)
        .join("/"),
    );
    row.orders.hidden = !canChange;
    for (const order of row.orders.children) order.disabled = told.state !== "ready";
  }
}

export class RankTable {
  constructor() {
    this._rows = new Rows("ranks", "Attention ranks", [
      "Rank",
      "State",
      "Running",
      "Waiting",
      "KV in use",
      "Tokens/s",
    ]);
  }

  /** `speeds` has tokens per second by rank. */
  show(ranks, speeds) {
    this._rows.show(
      ranks,
      (rank) => rank.rank,
      () => this._make(),
      (row, rank) => {
        setText(row.name, rank.rank);
        showState(row.state, rank.not_ready ? "suspect" : "ready");
        row.state.title = rank.not_ready;
        setText(row.running, count(rank.num_running));
        setText(
          row.waiting,
          rank.num_waiting
            ? `${count(rank.num_waiting)} (${count(rank.num_waiting_tokens)} tokens)`
            : "0",
        );
        setBar(row.bar, rank.kv_usage);
        setText(row.kv, percent(rank.kv_usage));
        setText(row.speed, count(speeds.get(rank.rank) ?? 0));
      },
    );
  }

  _make() {
    const number = () => el("span", { class: "number" });
    const row = {
      name: el("span", { class: "mono" }),
      state: el("span", { class: "state" }),
      running: number(),
      waiting: number(),
      bar: bar(),
      kv: number(),
      speed: number(),
    };
    const cells = [row.name, row.state, row.running, row.waiting, [row.bar, row.kv], row.speed];
    row.root = el(
      "tr",
      {},
      cells.map((cell, at) => el(at ? "td" : "th", at ? {} : { scope: "row" }, cell)),
    );
    return row;
  }
}
