/*
 * Timers that know what is still to come: the run ends when all have fired, and code that waits for something
 * that nothing can bring about is told so, where the engine would abort.
 */
const { setTimeout, setInterval, clearTimeout, clearInterval } = globalThis;

const pending = new Set();
let fail = () => {};
let changed = () => {};

/** Rejects with what a timer's callback throws. */
export const failure = new Promise((_, reject) => { fail = reject; });
failure.catch(() => {});

export function installTimers() {
  globalThis.setTimeout = (callback, delay = 0, ...args) => {
    const id = setTimeout(() => {
      pending.delete(id);
      call(callback, args);
    }, delay);
    pending.add(id);
    return id;
  };
  globalThis.setInterval = (callback, delay = 0, ...args) => {
    const id = setInterval(() => call(callback, args), delay);
    pending.add(id);
    return id;
  };
  globalThis.clearTimeout = globalThis.clearInterval = (id) => {
    if (pending.delete(id)) {
      clearTimeout(id);
      clearInterval(id);
      soon();
    }
  };
  globalThis.setImmediate = (callback, ...args) => globalThis.setTimeout(callback, 0, ...args);
}

function call(callback, args) {
  try {
    if (typeof callback !== "function") {
      throw new TypeError("a timer needs a function");
    }
    callback(...args);
  } catch (thrown) {
    fail(thrown);
  }
  soon();
}

function soon() {
  setTimeout(() => changed(), 0); // after the promises that the callback settled
}

/** Rejects once `promise` is pending and no timer is left that could settle it. */
export function deadlock(promise) {
  return new Promise((_, reject) => {
    let settled = false;
    const end = () => { settled = true; };
    promise.then(end, end);
    changed = () => {
      if (!settled && pending.size === 0) {
        reject(new Error("deadlock: the code waits for a promise that nothing is left to settle"));
      }
    };
    soon();
  });
}

/** Resolves when no timer is left. */
export async function drain() {
  if (pending.size > 0) {
    await new Promise((resolve) => {
      changed = () => {
        if (pending.size === 0) {
          resolve();
        }
      };
    });
  }
}
