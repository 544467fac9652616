// Runs inside a JavaScript kernel right after its start, as a silent cell: what code written for Node's prompt expects
// beyond what Deno offers. Each can be declared anew by a cell, and is made when it is first looked at: loading what
// belongs to Node takes longer than the kernel's whole start.
{
  const folder = Deno.cwd();
  const node = (name) => process.getBuiltinModule(name);
  const lazily = {
    require: () => node("module").createRequire(folder + "/"),
    module: () => ({ exports: {}, id: "<cell>", filename: null, loaded: false, children: [], paths: [] }),
    exports: () => globalThis.module.exports,
    __dirname: () => folder,
    __filename: () => folder + "/<cell>",
    global: () => globalThis,
    setImmediate: () => node("timers").setImmediate,
    clearImmediate: () => node("timers").clearImmediate,
  };
  // As in the kernel that E2B has: `$$.html("<b>b</b>")`.
  const types = {
    text: "text/plain", html: "text/html", svg: "image/svg+xml", png: "image/png", jpeg: "image/jpeg",
    json: "application/json", latex: "text/latex", markdown: "text/markdown", js: "application/javascript",
  };
  const show = (data) => void Deno.jupyter.display(data, { raw: true });
  const shows = () => {
    const each = Object.entries(types).map(([name, type]) => [name, (value) => show({ [type]: value })]);
    return { mime: show, ...Object.fromEntries(each) };
  };
  lazily.display = () => Deno.jupyter.display;
  lazily.$$ = shows;
  const hidden = { configurable: true, enumerable: false };
  for (const [name, make] of Object.entries(lazily)) {
    const set = (value) => Object.defineProperty(globalThis, name, { value, writable: true, ...hidden });
    const get = () => {
      set(make());
      return globalThis[name];
    };
    Object.defineProperty(globalThis, name, { get, set, ...hidden });
  }
}
