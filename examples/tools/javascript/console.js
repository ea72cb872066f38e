/* console: written through to WASI's stdout and stderr line by line, and kept for the answer. */
const write = { stdout: console.log.bind(console), stderr: console.error.bind(console) };
const lines = { stdout: [], stderr: [] };
const sizes = { stdout: 0, stderr: 0 };
const MAX_KEPT = 1 << 20; // characters of each stream; the host stops a run that prints more
const MAX_DEPTH = 4;
const MAX_ITEMS = 100;
const MAX_WIDTH = 76;

export function record(stream, line) {
  line = line.toWellFormed();
  write[stream](line);
  if (sizes[stream] < MAX_KEPT) {
    sizes[stream] += line.length + 1;
    lines[stream].push(line, "\n");
  }
}

export function text(stream) {
  return lines[stream].join("");
}

export function installConsole() {
  const counts = new Map();
  const times = new Map();
  let indent = "";
  const print = (stream) => (...values) => {
    const line = format(values);
    record(stream, indent === "" ? line : indent + line.replaceAll("\n", `\n${indent}`));
  };
  const out = print("stdout");
  const err = print("stderr");
  globalThis.console = {
    log: out, info: out, debug: out, dir: (value) => out(value), dirxml: out, table: (value) => out(value),
    warn: err, error: err,
    trace: (...values) => err("Trace:", ...values),
    assert: (condition, ...values) => { if (!condition) err("Assertion failed:", ...values); },
    group: (...values) => { if (values.length > 0) out(...values); indent += "  "; },
    groupCollapsed: (...values) => { if (values.length > 0) out(...values); indent += "  "; },
    groupEnd: () => { indent = indent.slice(2); },
    count: (label = "default") => {
      counts.set(label, (counts.get(label) ?? 0) + 1);
      out(`${label}: ${counts.get(label)}`);
    },
    countReset: (label = "default") => { counts.delete(label); },
    time: (label = "default") => { times.set(label, performance.now()); },
    timeLog: (label = "default") => { out(`${label}: ${elapsed(label)} ms`); },
    timeEnd: (label = "default") => { out(`${label}: ${elapsed(label)} ms`); times.delete(label); },
  };
  function elapsed(label) {
    return (performance.now() - (times.get(label) ?? performance.now())).toFixed(3);
  }
}

function format(values) {
  if (typeof values[0] === "string" && values.length > 1 && values[0].includes("%")) {
    const rest = values.slice(1);
    const head = values[0].replace(/%[sdifjoOc%]/g, (mark) => {
      if (mark === "%%") return "%";
      if (rest.length === 0) return mark;
      const value = rest.shift();
      switch (mark) {
        case "%s": return typeof value === "string" ? value : inspect(value);
        case "%d": return String(Number(value));
        case "%i": return String(Math.trunc(Number(value)));
        case "%f": return String(Number.parseFloat(value));
        case "%j": return JSON.stringify(value);
        case "%c": return "";
        default: return inspect(value);
      }
    });
    return [head, ...rest.map(shown)].join(" ");
  }
  return values.map(shown).join(" ");
}

function shown(value) {
  return typeof value === "string" ? value : inspect(value);
}

/** A value as console.log shows it. Never throws. */
export function inspect(value) {
  try {
    return inspected(value, 0, []);
  } catch (thrown) {
    return "[value that cannot be shown]";
  }
}

function inspected(value, depth, parents) {
  switch (typeof value) {
    case "string": return JSON.stringify(value);
    case "bigint": return `${value}n`;
    case "symbol": return value.toString();
    case "function": return `[${/^class\b/.test(String(value)) ? "class" : "Function"} ${value.name || "(anonymous)"}]`;
    case "number": return Object.is(value, -0) ? "-0" : String(value);
    case "object": return value === null ? "null" : object(value, depth, parents);
    default: return String(value);
  }
}

function object(value, depth, parents) {
  if (parents.includes(value)) return "[Circular]";
  if (value instanceof Error) return errorText(value);
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? "Invalid Date" : value.toISOString();
  if (value instanceof RegExp) return String(value);
  if (value instanceof Promise) return "Promise {}";
  const name = value.constructor?.name;
  if (value instanceof Number || value instanceof Boolean || value instanceof String) {
    return `[${name}: ${inspected(value.valueOf(), depth, parents)}]`;
  }
  const isList = Array.isArray(value) || (ArrayBuffer.isView(value) && !(value instanceof DataView));
  if (depth > MAX_DEPTH) return isList ? "[Array]" : `[${name ?? "Object"}]`;
  const inner = (item) => inspected(item, depth + 1, [...parents, value]);
  if (isList) {
    const items = Array.from({ length: Math.min(value.length, MAX_ITEMS) }, (_, i) => inner(value[i]));
    return braced(Array.isArray(value) ? "" : `${name}(${value.length}) `, "[]", items, value.length, depth);
  }
  if (value instanceof Map) {
    const items = [...value].slice(0, MAX_ITEMS).map(([key, item]) => `${inner(key)} => ${inner(item)}`);
    return braced(`Map(${value.size}) `, "{}", items, value.size, depth);
  }
  if (value instanceof Set) {
    return braced(`Set(${value.size}) `, "{}", [...value].slice(0, MAX_ITEMS).map(inner), value.size, depth);
  }
  const keys = Object.keys(value);
  const items = keys.slice(0, MAX_ITEMS).map((key) => {
    const label = /^[A-Za-z_$][\w$]*$/.test(key) ? key : JSON.stringify(key);
    const own = Object.getOwnPropertyDescriptor(value, key);
    return `${label}: ${own !== undefined && own.get !== undefined ? "[Getter]" : inner(value[key])}`;
  });
  const prefix = name === undefined ? "[Object: null prototype] " : name === "Object" ? "" : `${name} `;
  return braced(prefix, "{}", items, keys.length, depth);
}

function braced(prefix, brackets, items, total, depth) {
  if (total > items.length) items.push(`… ${total - items.length} more`);
  if (items.length === 0) return prefix + brackets;
  const pad = brackets === "{}" ? " " : "";
  const line = `${prefix}${brackets[0]}${pad}${items.join(", ")}${pad}${brackets[1]}`;
  if (line.length <= MAX_WIDTH && !line.includes("\n")) return line;
  const indent = "  ".repeat(depth + 1);
  return `${prefix}${brackets[0]}\n${indent}${items.join(`,\n${indent}`)}\n${"  ".repeat(depth)}${brackets[1]}`;
}

function errorText(error) {
  const frames = String(error.stack ?? "").split("\n").filter((entry) => entry.includes("@code.js:"));
  const places = frames.slice(0, 10).map((entry) => `\n    at ${entry.replace(/^(.*)@(.*)$/, (_, name, where) =>
    name ? `${name} (${where})` : where)}`);
  return `${error.name}: ${error.message}${places.join("")}`;
}
