/** The chat view: the open conversation, its answer under way, and what the reader does to both. */

import { ApiError, streamChat } from "./api.js";
import { Answer, requestBody, statsText } from "./answer.js";
import { button, byId, confirmed, el, setText } from "./dom.js";
import { exportJson, exportMarkdown } from "./exporting.js";
import { askForKeys } from "./keydialog.js";
import { MessageView } from "./message.js";
import { showSettings } from "./settings.js";
import * as store from "./store.js";

const SAVE_EVERY_MS = 1000;

export class Chat {
  /** `served()` resolves to the model, as /v1/models tells. */
  constructor(served) {
    this._served = served;
    this._views = [];
    this._stopping = null;
    this._follows = true;
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    byId("chat").addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stop();
    });
    byId("messages").addEventListener("scroll", () => this._noteScroll());
    byId("stop").addEventListener("click", () => this.stop());
    byId("new-chat").addEventListener("click", () =>
      this.open(store.newConversation(this._open.settings)),
    );
    byId("delete-chat").addEventListener("click", () => this._delete());
    byId("export-json").addEventListener("click", () => exportJson(this._open));
    byId("export-markdown").addEventListener("click", () => exportMarkdown(this._open));
    byId("toggle-settings").addEventListener("click", () => this._toggleSettings());
    this.open(store.loadCurrent() ?? store.newConversation());
  }

  /** Show a conversation; an answer under way in another one is stopped. */
  open(conversation) {
    this.stop();
    this._stopping = null;
    this._open = conversation;
    store.setCurrent(conversation.id);
    showSettings(conversation.settings, () => this._save());
    this._views = [];
    byId("messages").replaceChildren();
    conversation.messages.forEach((message) => this._show(message));
    this._refresh();
    this._scrollDown(true);
    byId("prompt").focus({ preventScroll: true });
  }

  send() {
    const field = byId("prompt");
    if (this._stopping || !field.value.trim()) return;
    this._add({ role: "user", content: field.value.trim() });
    field.value = "";
    this._run();
  }

  stop() {
    this._stopping?.abort();
  }

  regenerate() {
    if (this._stopping) return;
    const { messages } = this._open;
    while (messages.length && messages.at(-1).role !== "user" && messages.at(-1).role !== "tool") {
      messages.pop();
      this._views.pop().root.remove();
    }
    if (messages.length) this._run();
  }

  _add(message) {
    this._open.messages.push(message);
    this._show(message);
    this._save();
    this._refresh();
  }

  _show(message) {
    const view = new MessageView(message, {
      onToolResult: (call, content) => {
        this._add({ role: "tool", tool_call_id: call.id, content });
        this._run();
      },
    });
    this._views.push(view);
    byId("messages").append(view.root);
    return view;
  }

  async _run() {
    const conversation = this._open;
    const stopping = (this._stopping = new AbortController());
    const answer = new Answer();
    const { message } = answer;
    conversation.messages.push(message);
    const view = this._show(message);
    this._refresh();
    this._scrollDown(true);
    await this._take(conversation, answer, view, stopping.signal);
    message.stats = answer.stats;
    view.update(message);
    if (this._stopping === stopping) this._stopping = null;
    conversation.updated = Date.now();
    this._save(conversation);
    this._refresh();
    this._scrollDown();
    const told = `Answer finished: ${statsText(message.stats)}. ${message.content}`;
    setText(byId("chat-status"), message.error ?? told);
  }

  /** Show an answer as it comes, to its end. */
  async _take(conversation, answer, view, signal) {
    const { message } = answer;
    const painter = new Painter(() => {
      message.stats = answer.stats;
      view.update(message, { open: true });
      this._scrollDown();
    });
    let savedAt = performance.now();
    painter.wake();
    try {
      const body = requestBody(conversation, await this._served());
      for await (const chunk of streamChat(body, signal)) {
        answer.take(chunk);
        painter.wake();
        if (performance.now() - savedAt < SAVE_EVERY_MS) continue;
        savedAt = performance.now();
        store.save(conversation);
      }
    } catch (error) {
      this._failed(message, error);
    }
    painter.end();
  }

  _failed(message, error) {
    if (error.name === "AbortError") {
      message.finish = "stopped";
      return;
    }
    message.error =
      error instanceof ApiError ? error.message : `This page failed: ${error.message}`;
    if (error instanceof ApiError && error.wantsKey) {
      askForKeys(error).then((given) => {
        if (given) this.regenerate();
      });
    }
  }

  _save(conversation = this._open) {
    if (conversation.messages.length && !store.save(conversation)) {
      setText(byId("chat-status"), "The browser has no room to keep this conversation.");
    }
  }

  _refresh() {
    const busy = this._stopping !== null;
    byId("stop").hidden = !busy;
    byId("send").hidden = busy;
    const title = store.titleOf(this._open);
    setText(byId("chat-title"), title);
    for (const view of this._views) view.actions.querySelector(".regenerate")?.remove();
    const last = this._open.messages.at(-1);
    if (!busy && last?.role === "assistant") {
      this._views
        .at(-1)
        .actions.append(
          button("Regenerate", () => this.regenerate(), { class: "plain small regenerate" }),
        );
    }
    byId("messages").classList.toggle("empty", !this._open.messages.length);
    this._list();
  }

  _list() {
    const kept = store.conversations();
    byId("conversations").replaceChildren(
      ...kept.map((conversation) => {
        const isOpen = conversation.id === this._open.id;
        const open = () => this.open(store.load(conversation.id));
        return el(
          "li",
          {},
          button(store.titleOf(conversation), open, { "aria-current": isOpen ? "true" : null }),
        );
      }),
    );
  }

  async _delete() {
    if (!this._open.messages.length) return;
    if (
      !(await confirmed(
        "Delete this conversation?",
        "It is kept in this browser alone and cannot be brought back.",
        "Delete",
      ))
    )
      return;
    const { id, settings } = this._open;
    this.stop();
    this._open.messages = [];
    store.remove(id);
    this.open(store.conversations()[0] ?? store.newConversation(settings));
  }

  _toggleSettings() {
    const panel = byId("settings");
    panel.hidden = !panel.hidden;
    byId("toggle-settings").setAttribute("aria-expanded", String(!panel.hidden));
  }

  /** Keep the end in sight, unless the reader has scrolled away from it. */
  _scrollDown(always = false) {
    const box = byId("messages");
    if (always) this._follows = true;
    if (this._follows) box.scrollTop = box.scrollHeight;
  }

  _noteScroll() {
    const box = byId("messages");
    this._follows = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  }
}

/** Paints at most once a frame, however many tokens come. */
class Painter {
  constructor(paint) {
    this._paint = paint;
    this._frame = 0;
  }

  wake() {
    this._frame ||= requestAnimationFrame(() => {
      this._frame = 0;
      this._paint();
    });
  }

  end() {
    cancelAnimationFrame(this._frame);
    this._frame = 0;
  }
}
