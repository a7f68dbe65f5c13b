/** Paints the expert map one pixel a cell; the canvas on the page shows it enlarged. */

import { NOBODY, ramp, shardColour } from "./colours.js";

export const MODES = { traffic: "Traffic", placement: "Placement", copies: "Copies" };

const CHOOSERS = { traffic: trafficColours, placement: shardColours, copies: copyColours };
/** So many strengths of a shard's hue are told apart; each is computed once. */
const STRENGTHS = 32;

/** Paint `map` onto `canvas`, which becomes experts × layers pixels. */
export function paintCells(canvas, map, mode, theme) {
  const { layers, experts, size } = map;
  if (canvas.width !== experts || canvas.height !== layers) {
    Object.assign(canvas, { width: experts, height: layers });
  }
  const image = new ImageData(experts, layers);
  const pixels = new Uint32Array(image.data.buffer);
  const nobody = pixelOf(NOBODY[theme]);
  const colourOf = CHOOSERS[mode](map, theme);
  for (let cell = 0; cell < size; cell += 1) {
    pixels[cell] = map.primary(cell) < 0 ? nobody : colourOf(cell);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Return RGB as one pixel of an `ImageData`, opaque; every browser's machine is little-endian. */
function pixelOf([red, green, blue]) {
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

function trafficColours({ levels }, theme) {
  const table = ramp(theme).map(pixelOf);
  return (cell) => table[levels[cell]];
}

function shardColours(map, theme) {
  const known = new Map();
  return (cell) => {
    const strength = Math.floor((map.levels[cell] * STRENGTHS) / 256);
    const key = map.primary(cell) * STRENGTHS + strength;
    let pixel = known.get(key);
    if (pixel === undefined) {
      pixel = pixelOf(shardColour(map.primary(cell), (strength * 255) / (STRENGTHS - 1), theme));
      known.set(key, pixel);
    }
    return pixel;
  };
}

function copyColours(map, theme) {
  const table = ramp(theme).map(pixelOf);
  const most = Math.max(2, map.numCopies) + 1;
  return (cell) => table[Math.round((255 * map.holders(cell).length) / most)];
}
