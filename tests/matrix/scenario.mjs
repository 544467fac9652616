// The core scenario with whatever versions of `e2b` and `@e2b/code-interpreter` stand in this file's node_modules.
// Prints one JSON line: {"steps": {name: "ok" | the error}}.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'
import { Sandbox as Interpreter } from '@e2b/code-interpreter'

const steps = {}
const text = 'schön ☃\n'.repeat(1000)

async function step(name, body) {
  try {
    const value = await body()
    steps[name] = 'ok'
    return value
  } catch (error) {
    steps[name] = String(error?.stack ?? error).slice(0, 400)
  }
}

const sandbox = await step('create', () =>
  Sandbox.create({ timeoutMs: 120_000, metadata: { matrix: 'a b' }, envs: { WORD: 'hello' } }))

if (sandbox) {
  await step('run', async () => {
    let seen = ''
    const result = await sandbox.commands.run('echo "$WORD"; echo err >&2', { onStdout: (data) => { seen += data } })
    assert.deepEqual([result.stdout, result.stderr, seen], ['hello\n', 'err\n', 'hello\n'])
    const handle = await sandbox.commands.run('sleep 100', { background: true })
    assert.ok((await sandbox.commands.list()).some((process) => process.pid === handle.pid))
    assert.ok(await handle.kill())
  })
  await step('files', async () => {
    await sandbox.files.write('a/b.txt', text)
    assert.equal(await sandbox.files.read('a/b.txt'), text)
    await sandbox.files.makeDir('a/c')
    assert.deepEqual((await sandbox.files.list('a')).map((entry) => entry.name).sort(), ['b.txt', 'c'])
    const names = []
    const watch = await sandbox.files.watchDir('a', (event) => names.push(event.name))
    await sandbox.files.rename('a/b.txt', 'a/d.txt')
    assert.ok(await sandbox.files.exists('a/d.txt'))
    for (let n = 0; n < 100 && !names.includes('d.txt'); n++) await new Promise((resolve) => setTimeout(resolve, 50))
    assert.ok(names.includes('d.txt'))
    await watch.stop()
    await sandbox.files.remove('a/d.txt')
  })
  await step('pty', async () => {
    let out = ''
    const handle = await sandbox.pty.create({ cols: 70, rows: 20, onData: (data) => { out += new TextDecoder().decode(data) } })
    await sandbox.pty.sendInput(handle.pid, new TextEncoder().encode('stty size; exit\n'))
    await handle.wait()
    assert.match(out, /20 70/)
  })
  await step('list', async () => {
    const found = Sandbox.list({ query: { metadata: { matrix: 'a b' } } })
    const items = Array.isArray(found) ? found : await (await found).nextItems()
    assert.ok(items.some((item) => item.sandboxId === sandbox.sandboxId))
    assert.deepEqual((await sandbox.getInfo()).metadata, { matrix: 'a b' })
    await sandbox.setTimeout(200_000)
    assert.equal((await (await Sandbox.connect(sandbox.sandboxId)).commands.run('true')).exitCode, 0)
    assert.ok(await sandbox.isRunning())
  })
  await step('kill', async () => {
    await sandbox.kill() // older versions return nothing
    assert.equal(await sandbox.isRunning(), false)
  })
}
await step('code', async () => {
  const interpreter = await Interpreter.create({ timeoutMs: 120_000 })
  try {
    const execution = await interpreter.runCode("x = 6\nprint('printed')\nx * 7")
    assert.equal(execution.text, '42')
    assert.deepEqual(execution.logs.stdout, ['printed\n'])
    const context = await interpreter.createCodeContext()
    assert.equal((await interpreter.runCode('1 / 0', { context })).error.name, 'ZeroDivisionError')
  } finally {
    await interpreter.kill()
  }
})
console.log(JSON.stringify({ steps }))
process.exit()
