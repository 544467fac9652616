// Snapshots and forks by the published JavaScript SDK.
import test from 'node:test'
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'

test('a snapshot and a fork hold the files of their moment', async () => {
  const sandbox = await Sandbox.create()
  const made = []
  try {
    await sandbox.files.write('word', 'before')
    const snapshot = await sandbox.createSnapshot({ name: `js${Date.now().toString(36)}` })
    await sandbox.files.write('word', 'after')
    const child = await Sandbox.create(snapshot.snapshotId)
    made.push(child)
    assert.equal(await child.files.read('word'), 'before')
    const listed = await Sandbox.listSnapshots({ sandboxId: sandbox.sandboxId }).nextItems()
    assert.deepEqual(listed.map((one) => one.snapshotId), [snapshot.snapshotId])
    assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
    assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), false)
    const forks = await sandbox.fork({ count: 2 })
    for (const fork of forks) {
      made.push(fork.sandbox ?? fork)
      assert.equal(await made.at(-1).files.read('word'), 'after')
    }
  } finally {
    for (const one of [sandbox, ...made]) await one.kill()
  }
})
