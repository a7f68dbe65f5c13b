/** The panel of one conversation's settings: system prompt, sampling, tools. */

import { byId, el } from "./dom.js";

const NUMBERS = [
  {
    key: "temperature",
    label: "Temperature",
    min: 0,
    max: 2,
    step: 0.05,
    note: "0 always takes the likeliest token",
  },
  {
    key: "top_p",
    label: "Top p",
    min: 0.05,
    max: 1,
    step: 0.05,
    note: "share of likelihood that is drawn from",
  },
  {
    key: "top_k",
    label: "Top k",
    min: 1,
    max: 1000,
    step: 1,
    note: "empty: no limit",
    optional: true,
  },
  { key: "max_tokens", label: "Longest answer", min: 1, max: 131072, step: 1, note: "tokens" },
  {
    key: "seed",
    label: "Seed",
    min: 0,
    max: 2 ** 53 - 1,
    step: 1,
    note: "the same seed gives the same answer",
    optional: true,
  },
];

/** Fill the panel from `settings`; each valid change is written there and told to `onChange`. */
export function showSettings(settings, onChange) {
  const system = el("textarea", {
    id: "set-system",
    rows: 4,
    onchange: ({ target }) => change("system", target.value),
  });
  system.value = settings.system;
  const tools = el("textarea", {
    id: "set-tools",
    rows: 5,
    spellcheck: "false",
    class: "code-input",
    placeholder: '[{"type": "function", "function": {"name": …}}]',
    onchange: takeTools,
  });
  tools.value = settings.tools;
  const choice = el(
    "select",
    { id: "set-tool-choice", onchange: ({ target }) => change("tool_choice", target.value) },
    ["auto", "required", "none"].map((value) =>
      el("option", { selected: settings.tool_choice === value }, value),
    ),
  );
  byId("settings").replaceChildren(
    el("h3", {}, "Settings"),
    el("label", { for: "set-system" }, "System prompt"),
    system,
    NUMBERS.flatMap((field) => numberField(field, settings, change)).reduce(
      (box, node) => (box.append(node), box),
      el("div", { class: "numbers" }),
    ),
    el(
      "details",
      { open: Boolean(settings.tools) },
      el("summary", {}, "Tools"),
      el("label", { for: "set-tools" }, "Tools, as JSON"),
      tools,
      el("label", { for: "set-tool-choice" }, "Calls"),
      choice,
    ),
  );

  function change(key, value) {
    settings[key] = value;
    onChange();
  }

  function takeTools({ target }) {
    const problem = toolsProblem(target.value);
    target.setCustomValidity(problem);
    target.reportValidity();
    if (!problem) change("tools", target.value);
  }
}

function toolsProblem(text) {
  if (!text.trim()) return "";
  try {
    return Array.isArray(JSON.parse(text)) ? "" : "Tools are a JSON array.";
  } catch (error) {
    return `This is no JSON: ${error.message}`;
  }
}

function numberField({ key, label, note, optional, ...limits }, settings, change) {
  const id = `set-${key}`;
  const described = note ? { "aria-describedby": `${id}-note` } : {};
  const field = el("input", { id, type: "number", required: !optional, ...limits, ...described });
  field.value = settings[key] ?? "";
  field.addEventListener("change", () => {
    if (field.reportValidity()) change(key, field.value === "" ? null : Number(field.value));
  });
  const parts = [el("label", { for: id }, label), field];
  if (note) parts.push(el("p", { class: "quiet small", id: `${id}-note` }, note));
  return [el("div", { class: "field" }, parts)];
}
