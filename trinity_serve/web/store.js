/** Conversations in this browser's localStorage: one entry each, so that a save writes one. */

const PREFIX = "trinity.conversation.";
const CURRENT = "trinity.current";

export const DEFAULT_SETTINGS = Object.freeze({
  system: "",
  temperature: 0.8,
  top_p: 0.8,
  top_k: null,
  max_tokens: 512,
  seed: null,
  tools: "",
  tool_choice: "auto",
});

export function newConversation(settings = DEFAULT_SETTINGS) {
  return {
    id: crypto.randomUUID?.() ?? String(Math.random()).slice(2),
    title: "",
    updated: Date.now(),
    settings: { ...settings },
    messages: [],
  };
}

/** Return id, title and time of all that are kept, newest first; what cannot be read is left out. */
export function conversations() {
  return Object.keys(localStorage)
    .filter((key) => key.startsWith(PREFIX))
    .map((key) => load(key.slice(PREFIX.length)))
    .filter(Boolean)
    .sort((one, other) => other.updated - one.updated);
}

export function load(id) {
  try {
    const found = JSON.parse(localStorage.getItem(PREFIX + id));
    return found && { ...found, settings: { ...DEFAULT_SETTINGS, ...found.settings } };
  } catch {
    return null;
  }
}

/** Keep it; return false when the browser has no room for it. */
export function save(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    return true;
  } catch {
    return false;
  }
}

export const remove = (id) => localStorage.removeItem(PREFIX + id);
export const setCurrent = (id) => localStorage.setItem(CURRENT, id);

/** Return the conversation that was open last, or null. */
export const loadCurrent = () => load(localStorage.getItem(CURRENT) ?? "");

export function titleOf(conversation) {
  const first = conversation.messages.find((message) => message.role === "user");
  const text = (conversation.title || first?.content || "New conversation")
    .trim()
    .replace(/\s+/g, " ");
  return text.length > 60 ? `${text.slice(0, 58)}…` : text;
}
