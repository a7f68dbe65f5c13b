/** A stream of this page's own, shown token by token: what a reader notices of a lost shard. */

import { Answer, statsText } from "./answer.js";
import { streamChat } from "./api.js";
import { byId, el, setText } from "./dom.js";

const PROMPT = "Tell a long story about a lighthouse.";
const LONGEST = 4000;
const TAIL = 420;
const SECONDS = 60;
const DRAW_EVERY_MS = 250;

export class Watch {
  /** `served()` resolves to the model's description; `onError` is told of a refusal. */
  constructor(served, onError) {
    this._served = served;
    this._onError = onError;
    this._stopping = null;
    this._marks = [];
    this._state = el(
      "p",
      { class: "stream-state" },
      "Start one, then drain or kill a shard: it goes on.",
    );
    this._chart = el("canvas", {
      class: "chart",
      role: "img",
      "aria-label": "Tokens in each of the last 60 seconds",
    });
    this._text = el("p", { class: "tail" });
    byId("stream").append(this._state, this._chart, this._text);
    byId("watch").addEventListener("click", () =>
      this._stopping ? this._stopping.abort() : this._run(),
    );
  }

  /** Mark this moment in the chart. */
  mark() {
    this._marks.push(performance.now() / 1000);
  }

  async _run() {
    const stopping = (this._stopping = new AbortController());
    const answer = (this._answer = new Answer());
    setText(byId("watch"), "Stop the stream");
    const served = await this._served();
    const body = {
      model: served?.id,
      messages: [{ role: "user", content: PROMPT }],
      max_tokens: Math.min(LONGEST, (served?.max_model_len ?? 1024) - 100),
      ignore_eos: true,
      temperature: 0.8,
      top_p: 0.8,
    };
    const drawing = setInterval(() => this.draw(), DRAW_EVERY_MS);
    let end = "ended";
    try {
      for await (const chunk of streamChat(body, stopping.signal)) answer.take(chunk);
    } catch (error) {
      end = error.name === "AbortError" ? "stopped" : `failed: ${error.message}`;
      if (error.wantsKey) this._onError(error);
    }
    clearInterval(drawing);
    this._end = end;
    this._stopping = null;
    setText(byId("watch"), "Start a stream");
    this.draw();
  }

  /** Show how the stream is now. */
  draw() {
    const answer = this._answer;
    if (!answer) return;
    const running = this._stopping !== null;
    const waits =
      running && answer.silence_s > 1 ? ` · waits for ${answer.silence_s.toFixed(0)} s` : "";
    setText(
      this._state,
      `${running ? "Running" : `The stream ${this._end}`} · ${statsText(answer.stats)}${waits}`,
    );
    setText(this._text, answer.message.content.slice(-TAIL));
    this._drawChart(answer);
  }

  _drawChart({ arrivals }) {
    const [width, height] = [this._chart.clientWidth, this._chart.clientHeight];
    if (!width) return;
    Object.assign(this._chart, { width, height });
    const now = performance.now() / 1000;
    const bins = new Array(SECONDS).fill(0);
    for (const at of arrivals)
      if (now - at < SECONDS) bins[SECONDS - 1 - Math.floor(now - at)] += 1;
    const most = Math.max(4, ...bins);
    const context = this._chart.getContext("2d");
    const style = getComputedStyle(this._chart);
    context.fillStyle = style.color;
    bins.forEach((number, second) => {
      const size = (number / most) * (height - 4);
      context.fillRect((second / SECONDS) * width + 1, height - size, width / SECONDS - 2, size);
    });
    context.fillStyle = style.getPropertyValue("--bad");
    for (const mark of this._marks)
      context.fillRect(((SECONDS - (now - mark)) / SECONDS) * width, 0, 2, height);
  }
}
