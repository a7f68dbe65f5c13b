/** One streamed answer: what to ask for, its chunks folded into a message, and its times. */

/** Return the body that asks for the next answer. Throws on tools that are no JSON.
 *
 * `served`: the model, as /v1/models tells. An answer gets half of its context at most, so that the
 * same settings do for small models: what does not fit is refused before it begins.
 */
export function requestBody(conversation, served) {
  const { system, temperature, top_p, top_k, max_tokens, seed, tools, tool_choice } =
    conversation.settings;
  const messages = conversation.messages.map(sent).filter(Boolean);
  if (system.trim()) messages.unshift({ role: "system", content: system });
  const longest = Math.floor((served?.max_model_len ?? Infinity) / 2);
  const body = { model: served?.id, messages, temperature, top_p };
  body.max_tokens = Math.min(max_tokens, longest);
  if (top_k !== null) body.top_k = top_k;
  if (seed !== null) body.seed = seed;
  if (tools.trim()) Object.assign(body, { tools: JSON.parse(tools), tool_choice });
  return body;
}

function sent({ role, content, calls = [], tool_call_id }) {
  if (role === "tool") return { role, content, tool_call_id };
  if (!calls.length) return content ? { role, content } : null;
  const tool_calls = calls.map((call) => ({
    id: call.id,
    type: "function",
    function: { name: call.name, arguments: call.arguments },
  }));
  return { role, content, tool_calls };
}

export class Answer {
  constructor(clock = () => performance.now() / 1000) {
    this.message = {
      role: "assistant",
      content: "",
      reasoning: "",
      calls: [],
      finish: null,
      stats: null,
    };
    this.tokens = 0;
    this.arrivals = [];
    this._clock = clock;
    this._begun_s = clock();
    this._first_s = this._last_s = null;
  }

  /** Take one chunk of a chat completion. */
  take(chunk) {
    if (chunk.usage) this.tokens = chunk.usage.completion_tokens;
    const [choice] = chunk.choices;
    if (!choice) return;
    if (choice.finish_reason) this.message.finish = choice.finish_reason;
    const { content, reasoning, reasoning_content, tool_calls = [] } = choice.delta;
    this.message.content += content ?? "";
    this.message.reasoning += reasoning ?? reasoning_content ?? "";
    for (const call of tool_calls ?? []) this._takeCall(call);
    if (content || reasoning || reasoning_content || tool_calls?.length) this._note();
  }

  _takeCall({ index, id, function: told = {} }) {
    const { calls } = this.message;
    const call = (calls[index] ??= { id: "", name: "", arguments: "" });
    call.id ||= id ?? "";
    call.name += told.name ?? "";
    call.arguments += told.arguments ?? "";
  }

  _note() {
    this._last_s = this._clock();
    this._first_s ??= this._last_s;
    this.arrivals.push(this._last_s);
    if (this.arrivals.length > 4096) this.arrivals.splice(0, 1024);
  }

  /** Tokens, seconds to the first one, and tokens per second after it; null where not known yet. */
  get stats() {
    const first_s = this._first_s === null ? null : this._first_s - this._begun_s;
    const spent_s = (this._last_s ?? 0) - (this._first_s ?? 0);
    const per_s = this.tokens > 1 && spent_s > 0 ? (this.tokens - 1) / spent_s : null;
    return { tokens: this.tokens, first_s, per_s };
  }

  /** Seconds since something arrived last, or since it was asked for. */
  get silence_s() {
    return this._clock() - (this._last_s ?? this._begun_s);
  }
}

export function statsText({ tokens, first_s, per_s }) {
  const parts = [`${tokens} token${tokens === 1 ? "" : "s"}`];
  if (per_s !== null) parts.push(`${per_s.toFixed(1)} tokens/s`);
  if (first_s !== null)
    parts.push(
      `first after ${first_s < 1 ? `${(1000 * first_s).toFixed(0)} ms` : `${first_s.toFixed(2)} s`}`,
    );
  return parts.join(" · ");
}
