/** A conversation as a file: all of it as JSON, or what people read as Markdown. */

import { el } from "./dom.js";
import { titleOf } from "./store.js";

export function exportJson(conversation) {
  download(
    `${fileName(conversation)}.json`,
    "application/json",
    JSON.stringify(conversation, null, 2),
  );
}

export function exportMarkdown(conversation) {
  download(`${fileName(conversation)}.md`, "text/markdown", markdownOf(conversation));
}

export function markdownOf(conversation) {
  const parts = [`# ${titleOf(conversation)}`];
  if (conversation.settings.system) parts.push("## System", conversation.settings.system);
  for (const message of conversation.messages) {
    parts.push({ user: "## You", assistant: "## Model", tool: "## Tool result" }[message.role]);
    if (message.reasoning)
      parts.push(`<details><summary>Reasoning</summary>\n\n${message.reasoning}\n\n</details>`);
    if (message.content) parts.push(message.content);
    for (const call of message.calls ?? [])
      parts.push(`Calls \`${call.name}\`:\n\n\`\`\`json\n${call.arguments}\n\`\`\``);
  }
  return `${parts.join("\n\n")}\n`;
}

function fileName(conversation) {
  return (
    titleOf(conversation)
      .toLowerCase()
      .replace(/[^\p{L}\p{N}]+/gu, "-")
      .replace(/^-|-$/g, "")
      .slice(0, 40) || "conversation"
  );
}

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
