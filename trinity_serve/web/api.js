/** Calls to the server that this page came from, with the key of this tab. */

import { eventData } from "./sse.js";

const API_KEY = "trinity.api-key";
const ADMIN_KEY = "trinity.admin-key";
const TOKEN_FILE_HEADER = "x-trinity-token-file";

/** A refusal: status 0 where nothing answered. `tokenFile` has the text that admin calls ask for. */
export class ApiError extends Error {
  constructor(message, status, { code = "", tokenFile = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, tokenFile });
  }

  /** Whether another key may help. */
  get wantsKey() {
    return (
      this.status === 401 || this.code === "insufficient_scope" || this.code === "admin_refused"
    );
  }
}

export const keys = {
  get api() {
    return sessionStorage.getItem(API_KEY) ?? "";
  },
  get admin() {
    return sessionStorage.getItem(ADMIN_KEY) ?? "";
  },
  set(api, admin) {
    sessionStorage.setItem(API_KEY, api.trim());
    sessionStorage.setItem(ADMIN_KEY, admin.trim());
  },
};

/** Return the response; throws `ApiError` for every answer that is not a success. */
export async function call(path, { body, signal, admin = false } = {}) {
  const headers = {};
  const key = (admin && keys.admin) || keys.api;
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    const method = body === undefined ? "GET" : "POST";
    const text = body === undefined ? undefined : JSON.stringify(body);
    response = await fetch(path, { method, headers, body: text, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer.", 0);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const tokenFile = response.headers.get(TOKEN_FILE_HEADER) ?? "";
  try {
    const { error } = await response.json();
    return new ApiError(error.message, response.status, { code: error.code ?? "", tokenFile });
  } catch {
    return new ApiError(`The server answered ${response.status}.`, response.status, { tokenFile });
  }
}

export const getJson = async (path, options) => (await call(path, options)).json();

/** Iterate over the chunks of a streamed chat completion; throws what the server says of its end. */
export async function* streamChat(body, signal) {
  const stream_options = { include_usage: true, continuous_usage_stats: true };
  const response = await call("v1/chat/completions", {
    body: { ...body, stream: true, stream_options },
    signal,
  });
  for await (const data of eventData(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error)
      throw new ApiError(chunk.error.message, response.status, { code: chunk.error.code ?? "" });
    yield chunk;
  }
  throw new ApiError("The connection was lost before the answer ended.", 0);
}
