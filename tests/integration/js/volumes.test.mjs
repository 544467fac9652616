// Volumes by the published JavaScript SDK.
import test from 'node:test'
import assert from 'node:assert/strict'
import { Sandbox, Volume } from 'e2b'

test('a volume is made, filled, mounted and destroyed', async () => {
  const volume = await Volume.create(`js-${Date.now().toString(36)}`)
  let sandbox
  try {
    assert.equal((await volume.makeDir('/d', { mode: 0o750 })).mode, 0o750)
    assert.equal((await volume.writeFile('/d/f', 'text')).size, 4)
    const other = await Volume.connect(volume.volumeId)
    assert.equal(await other.readFile('/d/f'), 'text')
    assert.deepEqual(await volume.readFile('/d/f', { format: 'bytes' }), new TextEncoder().encode('text'))
    let streamed = ''
    for await (const chunk of await volume.readFile('/d/f', { format: 'stream' })) streamed += new TextDecoder().decode(chunk)
    assert.equal(streamed, 'text')
    assert.equal((await volume.updateMetadata('/d/f', { uid: 1000, mode: 0o600 })).mode, 0o600)
    assert.equal((await volume.getInfo('/d/f')).name, 'f')
    assert.equal((await Volume.getInfo(volume.volumeId)).name, volume.name)
    assert.deepEqual((await volume.list('/', { depth: 2 })).map((one) => one.path), ['/d', '/d/f'])
    assert.ok((await Volume.list()).some((one) => one.volumeId === volume.volumeId))
    assert.equal(await volume.exists('/none'), false)
    sandbox = await Sandbox.create({ volumeMounts: { '/data': volume } })
    const { stdout } = await sandbox.commands.run('cat /data/d/f; echo more > /data/more')
    assert.equal(stdout, 'text')
    assert.equal(await volume.readFile('/more'), 'more\n')
    await volume.remove('/d')
    assert.equal(await volume.exists('/d'), false)
  } finally {
    await sandbox?.kill()
    assert.equal(await Volume.destroy(volume.volumeId), true)
  }
  assert.equal(await Volume.destroy(volume.volumeId), false)
})
