// Runs inside a JavaScript kernel right after its start, as a silent cell: what code written for Node's prompt expects
// beyond what Deno offers. Each can be declared anew by a cell.
{
  const { createRequire } = await import("node:module");
  const timers = await import("node:timers");
  const folder = Deno.cwd();
  const module = { exports: {}, id: "<cell>", filename: null, loaded: false, children: [], paths: [] };
  const globals = {
    require: createRequire(folder + "/"),
    module,
    exports: module.exports,
    __dirname: folder,
    __filename: folder + "/<cell>",
    global: globalThis,
    setImmediate: timers.setImmediate,
    clearImmediate: timers.clearImmediate,
  };
  for (const [name, value] of Object.entries(globals)) {
    Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: false });
  }
}
