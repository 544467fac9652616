// Templates built by the published JavaScript SDK, and sandboxes of them.
import test from 'node:test'
import assert from 'node:assert/strict'
import { mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Sandbox, Template, defaultBuildLogger, waitForFile } from 'e2b'

const name = `js${Date.now().toString(36)}`

test('a template is built, tagged, used and found', async () => {
  const context = mkdtempSync(join(tmpdir(), 'atoll-js-'))
  writeFileSync(join(context, 'given.txt'), 'given')
  const template = Template({ fileContextPath: context })
    .fromNodeImage('lts')
    .copy('given.txt', '/srv/')
    .setEnvs({ WORD: 'from-env' })
    .runCmd('node -e "console.log(process.env.WORD)" > /home/user/word')
  const logs = []
  const built = await Template.build(template, `${name}:v1`, { cpuCount: 1, onBuildLogs: (entry) => logs.push(entry.message) })
  assert.ok(logs.some((line) => line.includes('RUN node -e')))
  assert.equal(await Template.exists(name), true)
  assert.equal(await Template.exists(`${name}-not`), false)
  const assigned = await Template.assignTags(`${name}:v1`, ['default'])
  assert.equal(assigned.buildId, built.buildId)
  assert.deepEqual((await Template.getTags(name)).map((one) => one.tag).sort(), ['default', 'v1'])
  const sandbox = await Sandbox.create(name)
  try {
    const run = await sandbox.commands.run('cat /srv/given.txt /home/user/word; echo $WORD')
    assert.equal(run.stdout, 'givenfrom-env\nfrom-env\n')
  } finally {
    await sandbox.kill()
  }
  await Template.removeTags(name, 'v1')
  assert.deepEqual((await Template.getTags(name)).map((one) => one.tag), ['default'])
})

test('a build in the background is followed, and a failure says why', async () => {
  const template = Template().fromBaseImage().runCmd('echo before').runCmd('exit 5')
  const begun = await Template.buildInBackground(template, `${name}-bad`)
  let status
  do status = await Template.getBuildStatus(begun)
  while (status.status === 'waiting' || status.status === 'building')
  assert.equal(status.status, 'error')
  assert.deepEqual([status.reason.step, status.reason.message], ["2", "failed to run command 'exit 5': exit status 5"])
  await assert.rejects(Template.build(template, `${name}-bad`), /exit status 5/)
})

test('the steps that the documentation shows are built as they are written', async () => {
  const context = mkdtempSync(join(tmpdir(), 'atoll-js-'))
  for (const file of ['app.ts', 'config.ts']) writeFileSync(join(context, file), file)
  const template = Template({ fileContextPath: context })
    .fromBaseImage()
    .copy(['app.ts', 'config.ts'], '/app/', { mode: 0o755 })
    .copyItems([{ src: 'app.ts', dest: '/srv/' }, { src: 'config.ts', dest: '/srv/', mode: 0o644 }])
    .makeDir(['/app/logs', '/app/cache'], { mode: 0o755, user: 'root' })
    .makeSymlink('/app/app.ts', '/app/link', { user: 'root', force: true })
    .rename('/app/config.ts', '/app/new.ts', { user: 'root' })
    .remove('/app/cache', { recursive: true, force: true, user: 'root' })
    .setWorkdir('/app')
    .runCmd(['echo one', 'echo two'], { user: 'root' })
    .setStartCmd('touch /tmp/ready && sleep 86377', waitForFile('/tmp/ready'))
  const lines = []
  const log = defaultBuildLogger({ minLevel: 'debug' })
  const onBuildLogs = (entry) => (log(entry), lines.push(entry.message))
  await Template.build(template, `${name}-steps`, { cpuCount: 1, memoryMB: 1024, onBuildLogs })
  assert.ok(lines.includes('the start command is ready'))
  const sandbox = await Sandbox.create(`${name}-steps`)
  try {
    const run = await sandbox.commands.run('pwd; cat link; stat -c "%n %a" * /srv/config.ts; pgrep -x sleep | wc -l')
    assert.equal(run.stdout, '/app\napp.tsapp.ts 755\nlink 777\nlogs 755\nnew.ts 755\n/srv/config.ts 644\n1\n')
  } finally {
    await sandbox.kill()
  }
})
