/** Colours of the heat map, for both themes: a ramp for traffic, hues for shards. */

const RAMPS = {
  light: ["#eef1f4", "#c9dcea", "#8fbcd8", "#4f93bf", "#2b689c", "#1d3f73", "#141f4a"],
  dark: ["#1c2229", "#1d3a4f", "#1f5e73", "#2d8a83", "#66b56f", "#c5d253", "#fdf3a0"],
};

const parsed = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** Return the RGB of each of 256 levels. */
export function ramp(theme) {
  const stops = RAMPS[theme].map(parsed);
  return Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    return stops[low].map((part, at) => part + (place - low) * (stops[low + 1][at] - part));
  });
}

/** Return the hue of a shard in degrees: neighbours differ by the golden angle. */
export const hueOf = (shard) => (205 + shard * 137.508) % 360;

/** Return RGB of a shard; `level` 0…255 makes it stand out from the page. */
export function shardColour(shard, level, theme) {
  const strength = 0.35 + (0.65 * level) / 255;
  const lightness = theme === "light" ? 0.88 - 0.43 * strength : 0.16 + 0.46 * strength;
  return hsl(hueOf(shard), 0.3 + 0.3 * strength, lightness);
}

function hsl(hue, saturation, lightness) {
  const reach = saturation * Math.min(lightness, 1 - lightness);
  return [0, 8, 4].map((offset) => {
    const place = (offset + hue / 30) % 12;
    return 255 * (lightness - reach * Math.max(-1, Math.min(place - 3, 9 - place, 1)));
  });
}

export const css = (rgb) => `rgb(${rgb.map(Math.round).join(" ")})`;
export const NOBODY = { light: [196, 43, 59], dark: [255, 107, 107] };
