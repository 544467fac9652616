import test from 'node:test'
import assert from 'node:assert/strict'
import { CommandExitError, InvalidArgumentError, NotFoundError, AuthenticationError, TimeoutError } from 'e2b'
import { eventually, withSandbox } from './support.mjs'

test('a command returns its output and exit code', async () => {
  await withSandbox(async (sandbox) => {
    const result = await sandbox.commands.run('echo out; echo err >&2')
    assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['out\n', 'err\n', 0])
  })
})

test('a failing command throws with its code and keeps its output', async () => {
  await withSandbox(async (sandbox) => {
    await assert.rejects(sandbox.commands.run('echo before; echo why >&2; exit 7'), (error) => {
      assert.ok(error instanceof CommandExitError)
      assert.deepEqual([error.exitCode, error.stdout, error.stderr], [7, 'before\n', 'why\n'])
      return true
    })
  })
})

test('callbacks hear of output before the end', async () => {
  await withSandbox(async (sandbox) => {
    const out = []
    const handle = await sandbox.commands.run('echo ready; read line; echo got $line', {
      background: true,
      stdin: true,
      onStdout: (data) => out.push(data),
    })
    await eventually(() => out.join('') === 'ready\n', 'the first line')
    await handle.sendStdin('go\n')
    assert.equal((await handle.wait()).stdout, 'ready\ngot go\n')
  })
})

test('user, cwd and envs are as asked', async () => {
  await withSandbox(async (sandbox) => {
    const opts = { user: 'root', cwd: '/tmp', envs: { WORD: 'a "b" $c' } }
    assert.equal((await sandbox.commands.run('id -un; pwd; echo "$WORD"', opts)).stdout, 'root\n/tmp\na "b" $c\n')
    assert.equal((await sandbox.commands.run('id -un; pwd')).stdout, 'user\n/home/user\n')
  })
})

test('unknown user, cwd and pid are told apart', async () => {
  await withSandbox(async (sandbox) => {
    await assert.rejects(sandbox.commands.run('true', { user: 'nosuchuser' }), AuthenticationError)
    await assert.rejects(sandbox.commands.run('true', { cwd: '/no/such' }), InvalidArgumentError)
    await assert.rejects(sandbox.commands.connect(999999), NotFoundError)
    await assert.rejects(sandbox.commands.sendStdin(999999, 'x'), NotFoundError)
    assert.equal(await sandbox.commands.kill(999999), false)
  })
})

test('stdin is fed until it is closed', async () => {
  await withSandbox(async (sandbox) => {
    const handle = await sandbox.commands.run('cat', { background: true, stdin: true })
    await handle.sendStdin('one\n')
    await sandbox.commands.sendStdin(handle.pid, new TextEncoder().encode('two\n'))
    await handle.closeStdin()
    assert.equal((await handle.wait()).stdout, 'one\ntwo\n')
  })
})

test('a timeout throws and ends the command', async () => {
  await withSandbox(async (sandbox) => {
    await assert.rejects(sandbox.commands.run('sleep 86383', { timeoutMs: 1000 }), TimeoutError)
    await eventually(async () => (await sandbox.commands.list()).length === 0, 'no command left')
  })
})

test('list, kill and connect', async () => {
  await withSandbox(async (sandbox) => {
    const handle = await sandbox.commands.run('sleep 86382', { background: true, envs: { MARK: '7' }, cwd: '/tmp' })
    await handle.disconnect()
    const [info] = await sandbox.commands.list()
    assert.equal(info.pid, handle.pid)
    assert.deepEqual([info.cmd, info.args], ['/bin/bash', ['-l', '-c', 'sleep 86382']])
    assert.deepEqual([info.envs.MARK, info.cwd], ['7', '/tmp'])
    const again = await sandbox.commands.connect(handle.pid)
    assert.equal(await again.kill(), true)
    await assert.rejects(again.wait(), CommandExitError)
  })
})

test('a hundred thousand lines arrive complete', async () => {
  await withSandbox(async (sandbox) => {
    const { stdout } = await sandbox.commands.run('seq 1 100000')
    assert.equal(stdout, Array.from({ length: 100000 }, (_, n) => `${n + 1}\n`).join(''))
  })
})

test('unicode survives both ways', async () => {
  await withSandbox(async (sandbox) => {
    assert.equal((await sandbox.commands.run("printf '%s' 'žluť 🦄 日本'")).stdout, 'žluť 🦄 日本')
  })
})

test('commands at the same time do not mix', async () => {
  await withSandbox(async (sandbox) => {
    const runs = Array.from({ length: 30 }, (_, n) => sandbox.commands.run(`echo ${n}`))
    assert.deepEqual((await Promise.all(runs)).map((r) => r.stdout), Array.from({ length: 30 }, (_, n) => `${n}\n`))
  })
})

test('a terminal echoes, resizes and is killed', async () => {
  await withSandbox(async (sandbox) => {
    let shown = ''
    const decoder = new TextDecoder()
    const encode = (text) => new TextEncoder().encode(text)
    const terminal = await sandbox.pty.create({
      cols: 77,
      rows: 22,
      cwd: '/tmp',
      envs: { WORD: 'value' },
      onData: (data) => {
        shown += decoder.decode(data, { stream: true })
      },
    })
    await sandbox.pty.sendInput(terminal.pid, encode('stty size; echo [$WORD] [$(pwd)]\n'))
    await eventually(() => shown.includes('22 77') && shown.includes('[value] [/tmp]'), 'size and env')
    await sandbox.pty.resize(terminal.pid, { cols: 133, rows: 44 })
    await sandbox.pty.sendInput(terminal.pid, encode('stty size\n'))
    await eventually(() => shown.includes('44 133'), 'the new size')
    const again = await sandbox.pty.connect(terminal.pid, { onData: () => {} })
    assert.equal(again.pid, terminal.pid)
    assert.equal(await sandbox.pty.kill(terminal.pid), true)
    await assert.rejects(terminal.wait(), CommandExitError)
    await assert.rejects(again.wait(), CommandExitError)
  })
})
