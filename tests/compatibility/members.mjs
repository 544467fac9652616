// Prints the public methods of the JavaScript SDKs as JSON: {group: [name]}. Its argument is the folder of node_modules.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'
import { resolve } from 'node:path'

const require = createRequire(resolve(process.argv[2], 'index.js'))
const load = (name) => import(pathToFileURL(require.resolve(name)).href).then((module) => module.default ?? module)
const e2b = await load('e2b')
const interpreter = await load('@e2b/code-interpreter')

// What is private or protected is so in the types only: TypeScript leaves no trace of it in the program.
const hidden = new Set(['resolveOpts'])
for (const name of ['e2b', '@e2b/code-interpreter']) {
  const types = readFileSync(require.resolve(name).replace(/index\.m?js$/, 'index.d.ts'), 'utf8')
  for (const match of types.matchAll(/^ +(?:private|protected) (?:static )?(?:readonly )?(?:get )?(\w+)/gm)) hidden.add(match[1])
  // A public method of the class may have the name of a private one of its instances.
  for (const match of types.matchAll(/^ +static (\w+)\(/gm)) hidden.delete(match[1])
}

function methods(holder) {
  const found = new Set()
  for (let at = holder; at && at !== Object.prototype && at !== Function.prototype; at = Object.getPrototypeOf(at)) {
    for (const name of Object.getOwnPropertyNames(at)) {
      const value = Object.getOwnPropertyDescriptor(at, name).value
      if (typeof value === 'function' && name !== 'constructor' && !name.startsWith('_') && !hidden.has(name)) found.add(name)
    }
  }
  return [...found].sort()
}

const sandbox = new e2b.Sandbox({ sandboxId: 'x', envdVersion: '0.6.7', apiKey: 'x' })
const out = {
  Sandbox: [...new Set([...methods(e2b.Sandbox), ...methods(e2b.Sandbox.prototype)])].sort(),
  files: methods(Object.getPrototypeOf(sandbox.files)),
  commands: methods(Object.getPrototypeOf(sandbox.commands)),
  pty: methods(Object.getPrototypeOf(sandbox.pty)),
  git: methods(Object.getPrototypeOf(sandbox.git)),
  CommandHandle: methods(e2b.CommandHandle?.prototype),
  WatchHandle: methods(e2b.WatchHandle?.prototype),
  SandboxPaginator: methods(e2b.SandboxPaginator?.prototype),
  Template: [...new Set([...methods(e2b.Template), ...methods(e2b.TemplateBase?.prototype ?? {})])].sort(),
  Volume: [...new Set([...methods(e2b.Volume), ...methods(e2b.Volume.prototype)])].sort(),
  Secret: methods(e2b.Secret),
  interpreter: methods(interpreter.Sandbox.prototype),
}
out.interpreter = out.interpreter.filter((name) => !out.Sandbox.includes(name))
console.log(JSON.stringify(out))
