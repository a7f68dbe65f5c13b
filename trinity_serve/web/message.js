/** One message on the page: reasoning folded, tool calls shown, text as Markdown. */

import { statsText } from "./answer.js";
import { button, el, setText } from "./dom.js";
import { LiveMarkdown } from "./markdown.js";

const NAMES = { user: "You", assistant: "Model", tool: "Tool result" };
const ENDINGS = {
  length: "Ended at the limit of tokens.",
  stopped: "Stopped.",
  content_filter: "Ended by a filter.",
};

export class MessageView {
  /** `onToolResult(call, text)` is called when the reader answers a tool call. */
  constructor(message, { onToolResult } = {}) {
    this._onToolResult = onToolResult;
    this._thought = el("div", { class: "thought" });
    this._summary = el("summary", {}, "Reasoning");
    this._reasoning = el(
      "details",
      { class: "reasoning", hidden: true },
      this._summary,
      this._thought,
    );
    this._text = el("div", { class: "text" });
    this._calls = el("div", { class: "calls" });
    this._note = el("p", { class: "note quiet", hidden: true });
    this.actions = el("div", { class: "row actions" });
    this._markdown = new LiveMarkdown(this._text);
    const name = NAMES[message.role] ?? message.role;
    const copy = button("Copy", () => navigator.clipboard?.writeText(this._message.content), {
      class: "plain small",
    });
    this._foot = el("footer", { class: "message-foot" }, this._note, this.actions);
    this.actions.append(copy);
    this.root = el(
      "article",
      { class: `message ${message.role}`, "aria-label": name },
      el("h3", { class: "who" }, name),
      this._reasoning,
      this._text,
      this._calls,
      this._foot,
    );
    this.update(message);
  }

  /** Show `message` as it is now; `open`: it is still being written. */
  update(message, { open = false } = {}) {
    this._message = message;
    this.root.classList.toggle("open", open);
    this._showReasoning(message, open);
    if (message.role === "assistant") this._markdown.update(message.content);
    else setText(this._text, message.content);
    this._showCalls(message.calls ?? [], open);
    const ending = message.error ?? ENDINGS[message.finish] ?? "";
    const stats = message.stats?.tokens ? statsText(message.stats) : "";
    this._note.hidden = !ending && !stats;
    this._note.classList.toggle("bad", Boolean(message.error));
    setText(this._note, [ending, stats].filter(Boolean).join(" "));
  }

  _showReasoning({ reasoning = "", content }, open) {
    this._reasoning.hidden = !reasoning;
    if (!reasoning) return;
    setText(this._thought, reasoning);
    const num = reasoning.trim().split(/\s+/).length;
    const told = `Reasoning, ${num} word${num === 1 ? "" : "s"}`;
    setText(this._summary, open && !content ? "Reasoning …" : told);
  }

  _showCalls(calls, open) {
    calls.forEach((call, at) => {
      const view = this._calls.children[at] ?? this._calls.appendChild(this._callView(call));
      setText(view.querySelector("code"), call.name);
      setText(view.querySelector("pre"), pretty(call.arguments));
      view.querySelector("form").hidden = open || Boolean(call.answered);
    });
  }

  _callView(call) {
    const field = el("input", {
      "aria-label": "Result of the call",
      placeholder: "Result of the call",
    });
    const answer = (event) => {
      event.preventDefault();
      call.answered = true;
      this._onToolResult?.(call, field.value);
    };
    const form = el(
      "form",
      { class: "row", onsubmit: answer, hidden: true },
      field,
      el("button", {}, "Send result"),
    );
    const title = el("p", {}, "Calls ", el("code", {}, call.name));
    return el(
      "div",
      { class: "call" },
      title,
      el("pre", { tabindex: 0, role: "group", "aria-label": "Arguments" }),
      form,
    );
  }
}

function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}
