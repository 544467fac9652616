// What the other files leave: every git method, on real repositories in a sandbox, and a few single calls.
import test from 'node:test'
import assert from 'node:assert/strict'
import { Sandbox, Secret, Template } from 'e2b'
import { withSandbox } from './support.mjs'

const REPO = '/home/user/repo'
const ada = (git, path) => git.configureUser('Ada', 'ada@example.com', { scope: 'local', path })

test('a git repository from its first commit to branches', () => withSandbox(async (sandbox) => {
  const git = sandbox.git
  await git.init(REPO, { initialBranch: 'main' })
  await ada(git, REPO)
  assert.equal(await git.getConfig('user.name', { scope: 'local', path: REPO }), 'Ada')
  await git.setConfig('pull.rebase', 'false', { scope: 'local', path: REPO })
  await sandbox.files.write(`${REPO}/a.txt`, 'one\n')
  assert.deepEqual((await git.status(REPO)).fileStatus.map((entry) => entry.name), ['a.txt'])
  await git.add(REPO)
  await git.commit(REPO, 'first')
  assert.equal((await git.status(REPO)).isClean, true)
  await git.createBranch(REPO, 'work')
  assert.equal((await git.branches(REPO)).currentBranch, 'work')
  await git.checkoutBranch(REPO, 'main')
  await git.deleteBranch(REPO, 'work', { force: true })
  assert.deepEqual((await git.branches(REPO)).branches, ['main'])
}))

test('git reset and restore undo what they name', () => withSandbox(async (sandbox) => {
  const git = sandbox.git
  await git.init(REPO, { initialBranch: 'main' })
  await ada(git, REPO)
  for (const text of ['one', 'two']) {
    await sandbox.files.write(`${REPO}/a.txt`, text)
    await git.add(REPO, { files: ['a.txt'] })
    await git.commit(REPO, text)
  }
  await sandbox.files.write(`${REPO}/a.txt`, 'spoilt')
  await git.restore(REPO, { paths: ['a.txt'] })
  assert.equal(await sandbox.files.read(`${REPO}/a.txt`), 'two')
  await git.reset(REPO, { mode: 'hard', target: 'HEAD~1' })
  assert.equal(await sandbox.files.read(`${REPO}/a.txt`), 'one')
}))

test('git clone, push and pull move commits between repositories', () => withSandbox(async (sandbox) => {
  const git = sandbox.git
  await sandbox.commands.run('git init -q --bare -b main /home/user/bare.git')
  await git.init(REPO, { initialBranch: 'main' })
  await git.configureUser('Ada', 'ada@example.com', { scope: 'global' })
  await git.remoteAdd(REPO, 'origin', 'file:///home/user/bare.git')
  assert.equal(await git.remoteGet(REPO, 'origin'), 'file:///home/user/bare.git')
  await sandbox.files.write(`${REPO}/a.txt`, 'one')
  await git.add(REPO)
  await git.commit(REPO, 'first')
  await git.push(REPO, { remote: 'origin', branch: 'main', setUpstream: true })
  await git.clone('file:///home/user/bare.git', { path: '/home/user/other' })
  await sandbox.files.write(`${REPO}/a.txt`, 'two')
  await git.add(REPO)
  await git.commit(REPO, 'second')
  await git.push(REPO)
  await git.pull('/home/user/other')
  assert.equal(await sandbox.files.read('/home/user/other/a.txt'), 'two')
}))

test('git keeps the credentials that it is told to keep', () => withSandbox(async (sandbox) => {
  await sandbox.git.dangerouslyAuthenticate({ username: 'ada', password: 's3cret', host: 'git.example.com' })
  const ask = "printf 'protocol=https\\nhost=git.example.com\\n\\n' | git credential fill"
  assert.match((await sandbox.commands.run(ask)).stdout, /username=ada\npassword=s3cret/)
}))

test('several files are written in one call', () => withSandbox(async (sandbox) => {
  await sandbox.files.writeFiles([{ path: 'a', data: 'one' }, { path: 'b/c', data: 'two' }])
  assert.deepEqual([await sandbox.files.read('a'), await sandbox.files.read('b/c')], ['one', 'two'])
}))

test('closing stdin ends a command that reads it', () => withSandbox(async (sandbox) => {
  const handle = await sandbox.commands.run('cat', { background: true, stdin: true })
  await sandbox.commands.sendStdin(handle.pid, 'typed')
  await sandbox.commands.closeStdin(handle.pid)
  assert.equal((await handle.wait()).stdout, 'typed')
}))

test('the network rules of a running sandbox are replaced', () => withSandbox(async (sandbox) => {
  await sandbox.updateNetwork({ denyOut: ['0.0.0.0/0'] })
  assert.deepEqual((await sandbox.getInfo()).network.denyOut, ['0.0.0.0/0'])
  await sandbox.updateNetwork({ allowOut: ['1.1.1.1'], denyOut: ['0.0.0.0/0'] })
  assert.deepEqual((await sandbox.getInfo()).network.allowOut, ['1.1.1.1'])
}))

test('secrets are kept and told by their metadata', async () => {
  const name = `key-${process.hrtime.bigint()}`
  const made = await Secret.create(name, 'v', { metadata: { a: 'b' } })
  assert.deepEqual([made.name, made.version, made.metadata], [name, 1, { a: 'b' }])
  assert.equal((await Secret.update(name, 'w')).version, 2)
  assert.equal((await Secret.getInfo(made.secretId)).name, name)
  assert.ok((await Secret.list().nextItems()).some((one) => one.name === name))
  assert.equal(Secret.fill(name), '${e2b.secrets.' + name + '}')
  assert.equal(await Secret.destroy(name), true)
  assert.equal(await Secret.exists(name), false)
})

test('the full information is the information', () => withSandbox(async (sandbox) => {
  assert.deepEqual(await Sandbox.getFullInfo(sandbox.sandboxId), await sandbox.getInfo())
}))

test('a template is known by its name', async () => {
  assert.equal(await Template.exists('base'), true)
  assert.equal(await Template.aliasExists('base'), true)
  assert.equal(await Template.exists('nobody-made-this'), false)
})
