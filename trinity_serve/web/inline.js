/** Inline Markdown as DOM nodes: code, emphasis, links. Links lead to http, https and mailto only. */

import { el } from "./dom.js";

const MAX_DEPTH = 4;
// One alternative each; no two quantifiers of one can match the same text, so none backtracks far.
const TOKEN = new RegExp(
  [
    /\\([!-/:-@[-`{-~])/, // 1: an escaped character
    /(`+)([^`]+)\2(?!`)/, // 2, 3: code
    /!?\[([^\][]*)\]\(\s*<?([^\s()<>]+)>?(?:\s+"[^"]*")?\s*\)/, // 4, 5: a link; images become one
    /(https?:\/\/[^\s<>()]+[^\s<>().,;:!?'"])/, // 6: a bare address
    /\*\*(?=\S)([^*]+)\*\*/, // 7: strong
    /(?<!\w)__(?=\S)([^_]+)__(?!\w)/, // 8: strong
    /\*(?=[^\s*])([^*]+)\*/, // 9: emphasis
    /(?<!\w)_(?=[^\s_])([^_]+)_(?!\w)/, // 10: emphasis
    /~~(?=\S)([^~]+)~~/, // 11: struck out
  ]
    .map((part) => part.source)
    .join("|"),
  "g",
);

/** Append `text` to `parent`. */
export function appendInline(parent, text, depth = 0) {
  let at = 0;
  for (const match of depth < MAX_DEPTH ? text.matchAll(TOKEN) : []) {
    if (match.index > at) parent.append(text.slice(at, match.index));
    parent.append(nodeOf(match, depth + 1));
    at = match.index + match[0].length;
  }
  if (at < text.length) parent.append(text.slice(at));
}

function nodeOf(match, depth) {
  const [
    whole,
    escaped,
    ,
    code,
    label,
    target,
    address,
    strong,
    strong2,
    emphasis,
    emphasis2,
    struck,
  ] = match;
  if (escaped !== undefined) return document.createTextNode(escaped);
  if (code !== undefined) return el("code", {}, code.trim());
  if (target !== undefined) return link(target, label || target, whole, depth);
  if (address !== undefined) return link(address, address, whole, MAX_DEPTH);
  if (struck !== undefined) return nested("s", struck, depth);
  if (strong ?? strong2) return nested("strong", strong ?? strong2, depth);
  return nested("em", emphasis ?? emphasis2, depth);
}

function nested(tag, text, depth) {
  const node = el(tag);
  appendInline(node, text, depth);
  return node;
}

function link(target, label, whole, depth) {
  let url;
  try {
    url = new URL(target);
  } catch {
    return document.createTextNode(whole);
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return document.createTextNode(whole);
  const node = el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" });
  appendInline(node, label, depth);
  return node;
}
