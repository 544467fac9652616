// What every test file needs: a sandbox that is killed afterwards, and waiting for a fact.
import { after } from 'node:test'
import { Sandbox } from 'e2b'
import { Sandbox as Interpreter } from '@e2b/code-interpreter'

// The code interpreter SDK leaves the 60 s timer of a refused request behind, which would keep the process waiting.
after(() => setTimeout(() => process.exit(), 500).unref())

export async function withSandbox(body, opts = {}) {
  const sandbox = await Sandbox.create({ timeoutMs: 300_000, ...opts })
  try {
    return await body(sandbox)
  } finally {
    await sandbox.kill()
  }
}

export async function withInterpreter(body, opts = {}) {
  const sandbox = await Interpreter.create({ timeoutMs: 300_000, ...opts })
  try {
    return await body(sandbox)
  } finally {
    await sandbox.kill()
  }
}

export async function eventually(probe, what, withinMs = 20_000) {
  const deadline = Date.now() + withinMs
  for (;;) {
    const value = await probe()
    if (value) return value
    if (Date.now() > deadline) throw new Error(`never happened: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}
