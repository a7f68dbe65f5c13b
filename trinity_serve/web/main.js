/** Starts the page: views by address, what is served, and whether it is ready. */

import { getJson } from "./api.js";
import { Chat } from "./chat.js";
import { Cluster } from "./cluster.js";
import { byId, setText } from "./dom.js";
import { askForKeys, setUpKeys } from "./keydialog.js";

const READY_EVERY_MS = 4000;
const UNREADY_EVERY_MS = 1000;
const VIEWS = ["chat", "cluster"];

let served = null;
let learning = null;
let shown = VIEWS[0];

async function learnModel() {
  try {
    served = (await getJson("v1/models")).data[0];
    setText(byId("model"), served.id);
  } catch (error) {
    if (error.wantsKey && !(await askForKeys(error))) setText(byId("model"), "needs a key");
  }
}

async function showReady() {
  const node = byId("ready");
  let next_ms = READY_EVERY_MS;
  try {
    await getJson("ready");
    node.dataset.state = "ready";
    setText(node, "ready");
    node.title = "";
  } catch (error) {
    next_ms = UNREADY_EVERY_MS;
    node.dataset.state = error.status === 0 ? "dead" : "suspect";
    setText(node, error.status === 0 ? "no answer" : "not ready");
    node.title = error.message;
  }
  setTimeout(showReady, next_ms);
}

function showView(cluster) {
  // Other fragments are places on the page, where the skip link leads for one.
  const name = (shown = VIEWS.find((view) => location.hash === `#/${view}`) ?? shown);
  for (const view of VIEWS) {
    byId(view).hidden = view !== name;
    if (view === name) byId(`nav-${view}`).setAttribute("aria-current", "page");
    else byId(`nav-${view}`).removeAttribute("aria-current");
  }
  document.title = name === "chat" ? "Chat · Trinity" : "Cluster · Trinity";
  if (name === "cluster") cluster.start();
  else cluster.stop();
}

/** Return the model that is served, once that is known; null where the server does not say. */
async function servedModel() {
  if (!served) await learning;
  return served;
}

new Chat(servedModel);
const cluster = new Cluster(servedModel);
window.addEventListener("hashchange", () => showView(cluster));
setUpKeys(() => {
  learning = learnModel();
  cluster.retry();
});
learning = learnModel();
showView(cluster);
showReady();
