import test from 'node:test'
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { AuthenticationError, Sandbox, SandboxNotFoundError, TimeoutError } from 'e2b'
import { eventually, withSandbox } from './support.mjs'

test('create takes its parameters and info tells them back', async () => {
  const opts = { metadata: { k: 'v &= é' }, envs: { MODE: 'on' }, timeoutMs: 90_000, allowInternetAccess: false }
  await withSandbox(async (sandbox) => {
    assert.match(sandbox.sandboxId, /^[a-z0-9]+$/)
    const info = await sandbox.getInfo()
    assert.equal(info.sandboxId, sandbox.sandboxId)
    assert.deepEqual(info.metadata, { k: 'v &= é' })
    assert.equal(info.state, 'running')
    assert.equal(info.name, 'base')
    assert.equal(info.allowInternetAccess, false)
    const seconds = (info.endAt - info.startedAt) / 1000
    assert.ok(seconds > 85 && seconds <= 91, `${seconds}`)
    assert.equal((await sandbox.commands.run('echo $MODE')).stdout, 'on\n')
  }, opts)
})

test('kill is true once and then the sandbox is gone', async () => {
  const sandbox = await Sandbox.create()
  assert.equal(await sandbox.isRunning(), true)
  assert.equal(await sandbox.kill(), true)
  assert.equal(await sandbox.isRunning(), false)
  assert.equal(await Sandbox.kill(sandbox.sandboxId), false)
  await assert.rejects(sandbox.getInfo(), SandboxNotFoundError)
  // The JavaScript SDK's own choice for the first event of a command.
  await assert.rejects(sandbox.commands.run('true'), SandboxNotFoundError)
  await assert.rejects(sandbox.files.read('/etc/hostname'), TimeoutError)
})

test('a sandbox ends at its timeout', async () => {
  const sandbox = await Sandbox.create({ timeoutMs: 300_000 })
  await sandbox.setTimeout(1000)
  await eventually(async () => !(await sandbox.isRunning()), 'the sandbox ended')
})

test('connect finds the same sandbox', async () => {
  await withSandbox(async (sandbox) => {
    await sandbox.files.write('note', 'kept')
    const same = await Sandbox.connect(sandbox.sandboxId)
    assert.equal(await same.files.read('note'), 'kept')
  })
  await assert.rejects(Sandbox.connect('nosuchsandbox00000000'), SandboxNotFoundError)
})

test('list pages through all sandboxes that match', async () => {
  const metadata = { mark: randomUUID() }
  const made = []
  try {
    for (let n = 0; n < 5; n++) made.push(await Sandbox.create({ metadata }))
    const paginator = Sandbox.list({ query: { metadata, state: ['running'] }, limit: 2, order: 'asc' })
    const seen = []
    while (paginator.hasNext) seen.push(...(await paginator.nextItems()))
    assert.deepEqual(seen.map((s) => s.sandboxId), made.map((s) => s.sandboxId))
    const none = Sandbox.list({ query: { metadata: { mark: 'nothing-has-this' } } })
    assert.deepEqual(await none.nextItems(), [])
  } finally {
    for (const sandbox of made) await sandbox.kill()
  }
})

test('metrics are plausible', async () => {
  await withSandbox(async (sandbox) => {
    const metrics = await eventually(async () => {
      const all = await sandbox.getMetrics()
      return all.length ? all : null
    }, 'a first reading')
    const last = metrics[metrics.length - 1]
    assert.ok(last.memUsed > 0 && last.memUsed <= last.memTotal)
    assert.ok(last.cpuCount >= 1)
  })
})

test('a wrong key is an authentication error', async () => {
  await assert.rejects(Sandbox.create({ apiKey: 'e2b_0000000000000000000000000000000000000000' }), AuthenticationError)
})

test('an unknown template is refused by name', async () => {
  await assert.rejects(Sandbox.create('no-such-template'), /no-such-template/)
})

test('a port in the sandbox is reached by its host name', async () => {
  await withSandbox(async (sandbox) => {
    await sandbox.files.write('site/index.html', 'served from inside')
    await sandbox.commands.run('python3 -m http.server 8000 --directory site', { background: true, timeoutMs: 0 })
    assert.ok(sandbox.getHost(8000).startsWith(`8000-${sandbox.sandboxId}.`))
    const headers = { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': '8000' }
    const text = await eventually(async () => {
      const response = await fetch(process.env.E2B_SANDBOX_URL, { headers })
      const body = await response.text()
      return response.ok ? body : null
    }, 'the page')
    assert.equal(text, 'served from inside')
  })
})

test('signed URLs work without headers', async () => {
  await withSandbox(async (sandbox) => {
    await sandbox.files.write('note', 'signed')
    const down = await fetch(await sandbox.downloadUrl('note', { useSignatureExpiration: 60_000 }))
    assert.equal(await down.text(), 'signed')
    const form = new FormData()
    form.append('file', new Blob(['uploaded']), 'up')
    const up = await fetch(await sandbox.uploadUrl('up'), { method: 'POST', body: form })
    assert.equal(up.status, 200)
    assert.equal(await sandbox.files.read('up'), 'uploaded')
  })
})

test('what is paused goes on where it was, or anew on its disk', async () => {
  await withSandbox(async (sandbox) => {
    await sandbox.files.write('kept', 'kept')
    const command = await sandbox.commands.run('sleep 1000', { background: true, timeoutMs: 0 })
    const paused = await sandbox.pause().catch((error) => {
      assert.match(error.message, /the tier .* cannot pause a sandbox/)
    })
    if (paused === undefined) return
    assert.equal(paused, true)
    assert.equal(await Sandbox.betaPause(sandbox.sandboxId), false)
    const resumed = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 60_000 })
    assert.ok((await resumed.commands.list()).some((process) => process.pid === command.pid))
    assert.equal(await resumed.betaPause({ keepMemory: false }), true)
    const rebooted = await Sandbox.connect(sandbox.sandboxId)
    assert.equal(await rebooted.files.read('kept'), 'kept')
    assert.ok(!(await rebooted.commands.list()).some((process) => process.pid === command.pid))
  })
})
