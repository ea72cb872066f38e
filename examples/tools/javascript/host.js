/* What code in the sandbox may ask of its host: the global `clawbox`, and `fetch` on top of it. */
import { call, httpRequest, log } from "clawbox:tool/host@1.0.0";

const LEVELS = new Set(["debug", "info", "warn", "error"]);

class HostError extends Error {
  constructor(reason) {
    super(reason);
    this.name = "HostError";
  }
}

/** A response: `status`, `headers` (pairs, in order, as sent), `body` (bytes), and what fetch's has. */
class HostResponse {
  constructor(url, { status, headers, body }) {
    this.url = url;
    this.status = status;
    this.ok = status >= 200 && status < 300;
    this.headers = new HostHeaders(headers.map(({ name, value }) => [name, value]));
    this.body = body;
  }
  async text() { return new TextDecoder().decode(this.body); }
  async json() { return JSON.parse(await this.text()); }
  async arrayBuffer() { return new Uint8Array(this.body).buffer; }
  async bytes() { return new Uint8Array(this.body); }
}

class HostHeaders extends Array {
  static get [Symbol.species]() { return Array; }
  constructor(pairs) {
    super();
    this.push(...pairs);
  }
  get(name) {
    const found = this.filter(([key]) => key.toLowerCase() === String(name).toLowerCase());
    return found.length === 0 ? null : found.map(([, value]) => value).join(", ");
  }
  has(name) { return this.get(name) !== null; }
}

function request(method, url, { headers = {}, body = undefined } = {}) {
  const pairs = typeof headers[Symbol.iterator] === "function" ? [...headers] : Object.entries(headers);
  if (typeof body === "string") {
    body = new TextEncoder().encode(body);
  } else if (body instanceof ArrayBuffer) {
    body = new Uint8Array(body);
  } else if (body === null || body === undefined) {
    body = undefined;
  } else if (!(body instanceof Uint8Array)) {
    throw new TypeError("a body is a string, a Uint8Array or an ArrayBuffer");
  }
  try {
    return new HostResponse(String(url), httpRequest({
      method: String(method).toUpperCase(),
      url: String(url),
      headers: pairs.map(([name, value]) => ({ name: String(name), value: String(value) })),
      body,
    }));
  } catch (thrown) {
    throw refused(thrown);
  }
}

function refused(thrown) {
  return new HostError(typeof thrown?.payload === "string" ? thrown.payload : String(thrown?.message ?? thrown));
}

export function installHost() {
  globalThis.clawbox = Object.freeze({
    HostError,
    /** Add an entry to the log of the call. */
    log(level, message) {
      level = level === "warning" ? "warn" : level;
      if (!LEVELS.has(level)) {
        throw new RangeError(`level must be debug, info, warn or error, not ${String(level)}`);
      }
      log(level, String(message));
    },
    /** Send one HTTP request through the sandbox's sidecar. */
    httpRequest: request,
    /** Call a host function by name. */
    call(method, params = null) {
      try {
        return JSON.parse(call(String(method), JSON.stringify(params)));
      } catch (thrown) {
        throw refused(thrown);
      }
    },
  });
  // The engine's own would need wasi:http, which no sandbox has.
  globalThis.fetch = async (url, { method = "GET", headers, body } = {}) => request(method, url, { headers, body });
  for (const name of ["Request", "Response", "Headers"]) {
    delete globalThis[name];
  }
}
