/** Markdown as DOM nodes, made for text that grows: only blocks that changed are built again. */

import { button, el } from "./dom.js";
import { appendInline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const TABLE_RULE = /^\s*\|?\s*:?-{2,}:?\s*(?:\|\s*:?-{2,}:?\s*)*\|?\s*$/;
const LONG_BLOCK = 20000;
const MAX_NESTING = 8;

/** Return the sources of blocks: fenced code, or lines up to an empty one. */
export function splitBlocks(text) {
  const blocks = [];
  let lines = [];
  let fence = "";
  const end = () => {
    if (lines.length) blocks.push(lines.join("\n"));
    lines = [];
  };
  for (const line of text.split("\n")) {
    const mark = FENCE.exec(line)?.[1];
    if (fence) {
      lines.push(line);
      if (mark?.startsWith(fence) && line.trim() === mark) {
        fence = "";
        end();
      }
    } else if (mark) {
      end();
      lines.push(line);
      fence = mark;
    } else if (line.trim()) {
      lines.push(line);
    } else {
      end();
    }
  }
  end();
  return blocks;
}

/** Shows Markdown in `root`; `update` may be called for every token. */
export class LiveMarkdown {
  constructor(root) {
    this.root = root;
    this._sources = [];
  }

  update(text) {
    const sources = splitBlocks(text);
    let same = 0;
    while (same < sources.length && sources[same] === this._sources[same]) same += 1;
    while (this.root.childElementCount > same) this.root.lastElementChild.remove();
    for (const source of sources.slice(same)) {
      const block = el("div", { class: "block" });
      appendBlock(block, source.split("\n"));
      this.root.append(block);
    }
    this._sources = sources;
  }
}

function appendBlock(parent, lines, nesting = 0) {
  const isCode = FENCE.test(lines[0]);
  if ((lines.join("\n").length > LONG_BLOCK && !isCode) || nesting > MAX_NESTING) {
    parent.append(el("pre", { tabindex: 0 }, lines.join("\n")));
    return;
  }
  for (let at = 0; at < lines.length;) at += appendPart(parent, lines.slice(at), nesting);
}

/** Append what the first lines are; return how many they were. */
function appendPart(parent, lines, nesting) {
  const [line] = lines;
  if (FENCE.test(line)) return appendCode(parent, lines);
  const heading = HEADING.exec(line);
  if (heading) {
    // The page itself has two levels above a message.
    parent.append(inlineOf(`h${Math.min(6, heading[1].length + 2)}`, heading[2]));
    return 1;
  }
  if (RULE.test(line)) {
    parent.append(el("hr"));
    return 1;
  }
  if (/^ {0,3}>/.test(line)) return appendQuote(parent, lines, nesting);
  if (ITEM.test(line)) return appendList(parent, lines, nesting);
  if (line.includes("|") && TABLE_RULE.test(lines[1] ?? "")) return appendTable(parent, lines);
  return appendParagraph(parent, lines);
}

const starts = (line) =>
  FENCE.test(line) ||
  HEADING.test(line) ||
  RULE.test(line) ||
  ITEM.test(line) ||
  /^ {0,3}>/.test(line);

function lengthWhile(lines, holds) {
  const end = lines.findIndex((line, at) => !holds(line, at));
  return end < 0 ? lines.length : end;
}

function inlineOf(tag, text) {
  const node = el(tag);
  appendInline(node, text);
  return node;
}

function appendParagraph(parent, lines) {
  const num = lengthWhile(lines, (line, at) => at === 0 || !starts(line));
  const node = el("p");
  lines.slice(0, num).forEach((line, at) => {
    if (at) node.append(el("br"));
    appendInline(node, line.trim());
  });
  parent.append(node);
  return num;
}

function appendQuote(parent, lines, nesting) {
  const num = lengthWhile(lines, (line) => /^ {0,3}>/.test(line));
  const quote = el("blockquote");
  appendBlock(
    quote,
    lines.slice(0, num).map((line) => line.replace(/^ {0,3}> ?/, "")),
    nesting + 1,
  );
  parent.append(quote);
  return num;
}

function appendList(parent, lines, nesting) {
  const [, indent, marker] = ITEM.exec(lines[0]);
  const ordered = /\d/.test(marker);
  const list = el(ordered ? "ol" : "ul", ordered ? { start: parseInt(marker, 10) } : {});
  const mine = (line) => {
    const match = ITEM.exec(line);
    return match && match[1].length <= indent.length && /\d/.test(match[2]) === ordered;
  };
  let at = 0;
  while (at < lines.length && mine(lines[at])) {
    const below = lengthWhile(lines.slice(at + 1), (line) => /^\s{2,}/.test(line) && !mine(line));
    const item = inlineOf("li", ITEM.exec(lines[at])[3]);
    if (below) appendBlock(item, dedented(lines.slice(at + 1, at + 1 + below)), nesting + 1);
    list.append(item);
    at += 1 + below;
  }
  parent.append(list);
  return Math.max(at, 1);
}

function dedented(lines) {
  const indent = Math.min(...lines.map((line) => line.length - line.trimStart().length));
  return lines.map((line) => line.slice(indent));
}

function appendTable(parent, lines) {
  const num = lengthWhile(lines, (line) => line.includes("|"));
  const cells = (line) =>
    line
      .trim()
      .replace(/^\||\|$/g, "")
      .split("|")
      .map((cell) => cell.trim());
  const row = (tag, line) =>
    el(
      "tr",
      {},
      cells(line).map((cell) => inlineOf(tag, cell)),
    );
  const body = lines.slice(2, num).map((line) => row("td", line));
  const table = el("table", {}, el("thead", {}, row("th", lines[0])), el("tbody", {}, body));
  parent.append(
    el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Table" }, table),
  );
  return num;
}

function appendCode(parent, lines) {
  const [, mark, language] = FENCE.exec(lines[0]);
  const inside = lengthWhile(lines.slice(1), (line) => !line.trim().startsWith(mark));
  const text = lines.slice(1, 1 + inside).join("\n");
  const copy = button("Copy", () => navigator.clipboard?.writeText(text), { class: "plain small" });
  const head = el("div", { class: "code-head" }, el("span", {}, language || "code"), copy);
  const name = language ? `Code, ${language}` : "Code";
  const code = el("pre", { tabindex: 0, role: "group", "aria-label": name }, el("code", {}, text));
  parent.append(el("div", { class: "code" }, head, code));
  return Math.min(lines.length, inside + 2);
}
