/** The (layer × expert) map on a canvas: traffic, placement or copies, with a cell under a cursor. */

import { MODES, paintCells } from "./cells.js";
import { byId, count, el, setText } from "./dom.js";

const HINTS = {
  traffic: "Stronger cells were sent more rows over the last minute.",
  placement: "One hue for each shard; stronger where more rows go.",
  copies: "Stronger cells have more copies.",
};
const FLASH_MS = 5000;
/** A whole shard that comes or goes is no crowd of moves; its colour tells of it. */
const MAX_FLASHES = 300;
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class HeatMap {
  constructor(map) {
    this._map = map;
    this._mode = "traffic";
    this._cursor = null;
    this._flashes = new Map();
    this._dark = matchMedia("(prefers-color-scheme: dark)");
    this._cells = document.createElement("canvas");
    this._canvas = el("canvas", {
      class: "heat",
      role: "img",
      tabindex: 0,
      "aria-label": "Map of experts",
      "aria-describedby": "map-detail",
    });
    this._detail = el("p", { id: "map-detail", class: "quiet detail" });
    this._spoken = el("p", { class: "hidden", role: "status" });
    byId("map").append(this._canvas, this._detail, this._spoken);
    for (const [mode, label] of Object.entries(MODES)) {
      const radio = el("input", {
        type: "radio",
        name: "map-mode",
        value: mode,
        checked: mode === this._mode,
        onchange: () => {
          this._mode = mode;
          this.draw();
        },
      });
      byId("map-modes").append(el("label", {}, radio, el("span", {}, label)));
    }
    this._canvas.addEventListener("pointermove", (event) => this._point(this._cellAt(event)));
    this._canvas.addEventListener("pointerleave", () => this._point(null));
    this._canvas.addEventListener("keydown", (event) => this._step(event));
    this._dark.addEventListener("change", () => this.draw());
    // In a frame of its own: drawing sets the height that is observed.
    new ResizeObserver(() => requestAnimationFrame(() => this.draw())).observe(byId("map"));
  }

  /** Outline cells for a few seconds. */
  flash(cells) {
    if (cells.length > MAX_FLASHES) return;
    const until = performance.now() + FLASH_MS;
    for (const cell of cells) this._flashes.set(cell, until);
  }

  draw() {
    const { layers, experts } = this._map;
    const width = byId("map").clientWidth;
    if (!layers || !width) return;
    paintCells(this._cells, this._map, this._mode, this._dark.matches ? "dark" : "light");
    const scale = window.devicePixelRatio || 1;
    const height = layers * Math.max(layers > 20 ? 5 : 12, Math.min(24, width / experts));
    const pixels = [Math.round(width * scale), Math.round(height * scale)];
    if (this._canvas.width !== pixels[0] || this._canvas.height !== pixels[1]) {
      [this._canvas.width, this._canvas.height] = pixels;
      this._canvas.style.height = `${height}px`;
    }
    const context = this._canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(this._cells, 0, 0, ...pixels);
    this._outline(context, ...pixels);
    this._describe();
  }

  _outline(context, width, height) {
    const now = performance.now();
    for (const [cell, until] of this._flashes) if (until < now) this._flashes.delete(cell);
    const [cellWidth, cellHeight] = [width / this._map.experts, height / this._map.layers];
    const box = (cell, grown) => {
      const [layer, expert] = this._placeOf(cell);
      context.strokeRect(
        expert * cellWidth - grown,
        layer * cellHeight - grown,
        cellWidth + 2 * grown,
        cellHeight + 2 * grown,
      );
    };
    context.strokeStyle = this._dark.matches ? "#ffffff" : "#111111";
    context.lineWidth = 1;
    for (const cell of this._flashes.keys()) box(cell, -0.5);
    context.lineWidth = 2;
    if (this._cursor !== null) box(this._cursor, 1);
  }

  _placeOf(cell) {
    return [Math.floor(cell / this._map.experts), cell % this._map.experts];
  }

  _cellAt({ offsetX, offsetY }) {
    const { layers, experts } = this._map;
    const at = (offset, size, number) =>
      Math.max(0, Math.min(number - 1, Math.floor((offset / size) * number)));
    return layers
      ? at(offsetY, this._canvas.clientHeight, layers) * experts +
          at(offsetX, this._canvas.clientWidth, experts)
      : null;
  }

  _point(cell) {
    if (cell === this._cursor) return;
    this._cursor = cell;
    requestAnimationFrame(() => this.draw());
  }

  _step(event) {
    const step = STEPS[event.key];
    if (!step || !this._map.layers) return;
    event.preventDefault();
    const [layer, expert] = this._placeOf(this._cursor ?? 0);
    const within = (number, limit) => Math.max(0, Math.min(limit - 1, number));
    this._point(
      within(layer + step[0], this._map.layers) * this._map.experts +
        within(expert + step[1], this._map.experts),
    );
    setText(this._spoken, this._textOf(this._cursor));
  }

  _textOf(cell) {
    const [layer, expert] = this._placeOf(cell);
    const [first, ...others] = this._map.holders(cell);
    const where =
      first === undefined
        ? "no shard holds it"
        : `shard ${first}${others.length ? `, copies at ${others.join(", ")}` : ""}`;
    return `Layer ${layer}, expert ${expert}: ${count(this._map.rows(cell))} rows, ${where}`;
  }

  _describe() {
    const { layers, experts, levels } = this._map;
    const size = `${layers} layers × ${experts} experts`;
    setText(
      this._detail,
      this._cursor === null ? `${size}. ${HINTS[this._mode]}` : this._textOf(this._cursor),
    );
    const busiest = levels.indexOf(255);
    const most = busiest < 0 ? "no traffic yet" : `busiest: ${this._textOf(busiest)}`;
    const label = `Map of ${size} by ${this._mode}; ${most}. Arrow keys go from cell to cell.`;
    if (this._canvas.getAttribute("aria-label") !== label)
      this._canvas.setAttribute("aria-label", label);
  }
}
