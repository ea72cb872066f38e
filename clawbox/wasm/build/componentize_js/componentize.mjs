// Builds a component from a JavaScript module: componentize.mjs SOURCE WIT WORLD OUTPUT.
// HTTP of the engine's own is left out: it would need wasi:http, and a sandbox has only its sidecar.
import { writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const [sourcePath, witPath, worldName, output] = process.argv.slice(2);
const { component } = await componentize({
  sourcePath, witPath, worldName, disableFeatures: ["http", "fetch-event"],
});
await writeFile(output, component);
