/** The dialog that asks for keys, when the reader wants it or the server refused. */

import { keys } from "./api.js";
import { byId } from "./dom.js";

/** Ask for keys; resolves to whether some were given. `error` is the refusal that led here. */
export function askForKeys(error = null) {
  const dialog = byId("keys");
  if (dialog.open) return Promise.resolve(false);
  const reason = byId("keys-reason");
  reason.hidden = error === null;
  reason.textContent = error?.message ?? "";
  const hint = byId("token-hint");
  hint.hidden = !error?.tokenFile;
  hint.textContent = error?.tokenFile ? `On the server's machine:  cat ${error.tokenFile}` : "";
  byId("api-key").value = keys.api;
  byId("admin-key").value = keys.admin;
  dialog.returnValue = "";
  dialog.showModal();
  byId(error?.tokenFile || error?.code === "insufficient_scope" ? "admin-key" : "api-key").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given"), { once: true });
  });
}

export function setUpKeys(onGiven) {
  const dialog = byId("keys");
  byId("open-keys").addEventListener("click", () => askForKeys());
  byId("keys-cancel").addEventListener("click", () => dialog.close(""));
  byId("keys-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keys.set(byId("api-key").value, byId("admin-key").value);
    dialog.close("given");
    onGiven();
  });
}
