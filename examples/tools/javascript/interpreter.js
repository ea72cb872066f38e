/*
 * Runs one piece of user code and answers with what it printed, its result, and its error.
 *
 * The answer is the JSON object {"stdout", "stderr", "result", "error"}. "error" is null, or
 * {"type", "message", "traceback", "line"}. A fifth member, "note", appears when the result was no JSON.
 *
 * What stands outside of `run` is evaluated once, while the component is built; the memory that this leaves is
 * what every call begins with.
 */
import { deadlock, drain, failure, installTimers } from "./timers.js";
import { installConsole, inspect, text } from "./console.js";
import { installHost } from "./host.js";

const FILE = "code.js";
const OWN_FRAME = /(?:^|[@/])(?:interpreter|initializer|timers|console|host)\.js(?::\d+:\d+$| line \d+)/;
const FRAME = /^(.*?)@(.*):(\d+):(\d+)$/;
const MAX_FRAMES = 30;
const MAX_SPLITS = 200;

// Code that ends in a statement without a value may still have a `result`: this asks for it in the scope of the
// code, and as a `var` statement leaves the completion value alone.
const CAPTURE = "__clawbox_capture__";
const RESULT = `${CAPTURE}(() => typeof result === "undefined" ? undefined : result)`;
const AFTER = `\n;var __clawbox_result__ = ${RESULT};\n//# sourceURL=${FILE}`;
const BEFORE_ASYNC = `(async () => {${RESULT};`;
const AFTER_ASYNC = `\n})()\n//# sourceURL=${FILE}`;

const evaluate = globalThis.eval; // called by another name it runs in the global scope
const AsyncFunction = (async () => {}).constructor;
const { parse, stringify } = JSON;

installConsole();
installTimers();
installHost();

/** The component's export: `params` and the answer are JSON; throwing makes it the `err` of the result. */
export async function run(params) {
  let result, error = null, code = "", columns = 0;
  try {
    ({ code, input: globalThis.input = null } = checked(parse(params)));
    let explicit = () => undefined;
    Object.defineProperty(globalThis, CAPTURE, {
      value: (read) => { explicit = read; }, configurable: true, enumerable: false,
    });
    let value;
    try {
      value = evaluate(code + AFTER);
    } catch (thrown) {
      if (!(thrown instanceof SyntaxError) || userFrames(thrown, Infinity).length > 0 || !/\bawait\b/.test(code)) {
        throw thrown;
      }
      columns = BEFORE_ASYNC.length;
      value = evaluate(asynchronous(code));
    }
    if (value instanceof Promise) {
      value = await Promise.race([value, failure, deadlock(value)]);
    }
    await Promise.race([drain(), failure]);
    const named = explicit();
    result = named === undefined ? value : named;
  } catch (thrown) {
    error = described(thrown, code, columns);
  }
  const answer = answered(result, error);
  if (error !== null) {
    throw answer;
  }
  return answer;
}

function checked(params) {
  if (params === null || typeof params !== "object" || typeof params.code !== "string") {
    throw new TypeError('parameters must be {"code": "…", "input": …}');
  }
  const unknown = Object.keys(params).filter((key) => key !== "code" && key !== "input");
  if (unknown.length > 0) {
    throw new TypeError(`unknown parameters: ${unknown.join(", ")}; there are code and input`);
  }
  return params;
}

/**
 * The code as the body of an async function, for `await` outside of functions. Its value is that of the last
 * statement if that is an expression: the shortest tail that is an expression after a head that is a program.
 */
function asynchronous(code) {
  let tries = 0;
  for (let at = code.trimEnd().length - 1; at >= 0 && tries < MAX_SPLITS; at--) {
    const separator = code[at - 1];
    if (at > 0 && separator !== "\n" && separator !== ";") {
      continue;
    }
    const head = code.slice(0, at);
    const tail = code.slice(at).trimEnd().replace(/;+$/, "");
    if (/^\s*$/.test(tail)) {
      continue;
    }
    tries++;
    // Such a line goes on with the statement before it, unless that has ended.
    if (/^\s*[([`+\-*/.,?:<>=&|^%]/.test(tail) && !/(?:^|[;}])\s*$/.test(head)) {
      continue;
    }
    if (parses(`return (${tail}\n)`) && parses(head)) {
      return `${BEFORE_ASYNC}${head}return (${tail}\n)${AFTER_ASYNC}`;
    }
  }
  return BEFORE_ASYNC + code + AFTER_ASYNC;
}

function parses(body) {
  try {
    new AsyncFunction(body);
    return true;
  } catch {
    return false;
  }
}

function described(thrown, code, columns) {
  if (thrown === "out of memory") {
    return { type: "MemoryError", message: thrown, traceback: `${thrown}\n`, line: null };
  }
  if (!(thrown instanceof Error)) {
    const message = inspect(thrown);
    return { type: typeof thrown, message, traceback: `Uncaught ${message}\n`, line: null };
  }
  const lines = code.split("\n");
  const frames = userFrames(thrown, lines.length).map((frame) => ({
    ...frame, column: frame.line === 1 ? Math.max(1, frame.column - columns) : frame.column,
  }));
  let at = frames.find((frame) => frame.file === FILE);
  if (at === undefined && thrown instanceof SyntaxError && thrown.lineNumber > 0) {
    const line = Math.min(thrown.lineNumber, lines.length);
    at = { line, column: line === 1 ? Math.max(1, thrown.columnNumber - columns) : thrown.columnNumber };
  }
  const type = String(thrown.name || thrown.constructor?.name || "Error");
  const message = String(thrown.message);
  let traceback = "";
  if (at !== undefined) {
    const source = lines[at.line - 1] ?? "";
    traceback += `${FILE}:${at.line}\n${source}\n`;
    traceback += at.column <= source.length + 1 ? `${" ".repeat(at.column - 1)}^\n` : "";
  }
  traceback += `${type}: ${message}\n`;
  for (const frame of frames.slice(0, MAX_FRAMES)) {
    const where = `${frame.file}:${frame.line}:${frame.column}`;
    traceback += frame.name ? `    at ${frame.name} (${where})\n` : `    at ${where}\n`;
  }
  if (frames.length > MAX_FRAMES) {
    traceback += `    … ${frames.length - MAX_FRAMES} more\n`;
  }
  for (let cause = thrown.cause, depth = 0; cause instanceof Error && depth < 5; cause = cause.cause, depth++) {
    traceback += `caused by ${cause.name}: ${cause.message}\n`;
  }
  return { type, message, traceback, line: at?.line ?? null };
}

function userFrames(thrown, lines) {
  const frames = [];
  for (const entry of String(thrown.stack ?? "").split("\n")) {
    const match = FRAME.exec(entry);
    if (match === null || OWN_FRAME.test(entry) || (match[2] === FILE && Number(match[3]) > lines)) {
      continue; // the engine's, this file's, or of what was put behind the code
    }
    frames.push({ name: match[1], file: match[2], line: Number(match[3]), column: Number(match[4]) });
  }
  return frames;
}

function answered(result, error) {
  const answer = { stdout: text("stdout"), stderr: text("stderr"), result: null, error };
  if (error !== null || result === undefined) {
    return stringify(answer);
  }
  try {
    let replaced = false;
    const encoded = stringify({ ...answer, result }, function (key, value) {
      if (typeof value === "string") {
        return value.toWellFormed(); // half a surrogate pair is no text
      }
      if (plain(value)) {
        return value;
      }
      replaced = true;
      return inspect(value);
    });
    if (!replaced) {
      return encoded;
    }
    const note = "parts of the result are not JSON and were replaced by what console.log shows";
    return stringify({ ...parse(encoded), note });
  } catch {
    answer.result = inspect(result);
    answer.note = "the result is not JSON and was replaced by what console.log shows";
    return stringify(answer);
  }
}

function plain(value) {
  switch (typeof value) {
    case "number": return Number.isFinite(value);
    case "bigint": case "function": case "symbol": return false;
    case "object":
      return !(value instanceof Map || value instanceof Set || value instanceof Error
        || value instanceof RegExp || value instanceof WeakMap || value instanceof WeakSet
        || value instanceof ArrayBuffer || ArrayBuffer.isView(value));
    default: return true;
  }
}
