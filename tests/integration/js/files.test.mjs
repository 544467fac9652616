import test from 'node:test'
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { FileNotFoundError, FilesystemEventType, FileType, InvalidArgumentError } from 'e2b'
import { eventually, withSandbox } from './support.mjs'

const MIB = 1024 * 1024

test('text, bytes, blobs and streams come back as written', async () => {
  await withSandbox(async ({ files }) => {
    const info = await files.write('note', 'text é 🦄')
    assert.deepEqual([info.name, info.path, info.type], ['note', '/home/user/note', FileType.FILE])
    assert.equal(await files.read('note'), 'text é 🦄')
    const data = randomBytes(3 * MIB)
    await files.write('blob', new Blob([data]))
    assert.ok(data.equals(Buffer.from(await files.read('blob', { format: 'bytes' }))))
    assert.equal((await files.read('blob', { format: 'blob' })).size, data.length)
    const pieces = []
    for await (const piece of await files.read('blob', { format: 'stream' })) pieces.push(piece)
    assert.ok(data.equals(Buffer.concat(pieces)))
  })
})

test('array buffers, read streams, octet streams and gzip go in', async () => {
  await withSandbox(async ({ files }) => {
    const data = randomBytes(MIB)
    const buffer = data.buffer.slice(data.byteOffset, data.byteOffset + data.length)
    const same = async (path) => assert.ok(data.equals(Buffer.from(await files.read(path, { format: 'bytes' }))), path)
    await files.write('a', buffer)
    await same('a')
    await files.write('b', new Blob([data]).stream())
    await same('b')
    await files.write('c', buffer, { useOctetStream: true })
    await same('c')
    await files.write('d', buffer, { gzip: true })
    await same('d')
    assert.ok(data.equals(Buffer.from(await files.read('d', { format: 'bytes', gzip: true }))))
  })
})

test('a hundred megabytes each way', async () => {
  await withSandbox(async (sandbox) => {
    const block = randomBytes(MIB)
    const digest = createHash('sha256')
    let n = 0
    const source = new ReadableStream({
      pull(controller) {
        if (n === 100) return controller.close()
        const piece = Buffer.from(block)
        piece.writeUInt32BE(n++)
        digest.update(piece)
        controller.enqueue(new Uint8Array(piece))
      },
    })
    await sandbox.files.write('big', source)
    const expected = digest.digest('hex')
    assert.equal((await sandbox.commands.run('sha256sum < big')).stdout.split(' ')[0], expected)
    const back = createHash('sha256')
    for await (const piece of await sandbox.files.read('big', { format: 'stream' })) back.update(piece)
    assert.equal(back.digest('hex'), expected)
  })
})

test('many files in one call', async () => {
  await withSandbox(async ({ files }) => {
    const written = await files.write(Array.from({ length: 20 }, (_, n) => ({ path: `many/f${n}`, data: `${n}` })))
    assert.deepEqual(written.map((info) => info.path), Array.from({ length: 20 }, (_, n) => `/home/user/many/f${n}`))
    assert.equal(await files.read('many/f19'), '19')
  })
})

test('the directory calls agree with each other', async () => {
  await withSandbox(async ({ files }) => {
    assert.equal(await files.makeDir('d/sub'), true)
    assert.equal(await files.makeDir('d/sub'), false)
    await files.write('d/sub/leaf', '12345')
    assert.deepEqual((await files.list('d')).map((e) => [e.name, e.type]), [['sub', FileType.DIR]])
    assert.deepEqual((await files.list('d', { depth: 2 })).map((e) => e.path).sort(), [
      '/home/user/d/sub',
      '/home/user/d/sub/leaf',
    ])
    const info = await files.getInfo('d/sub/leaf')
    assert.deepEqual([info.size, info.owner, info.mode & 0o777], [5, 'user', 0o644])
    assert.equal((await files.rename('d', 'moved')).path, '/home/user/moved')
    assert.equal(await files.exists('moved/sub/leaf'), true)
    await files.remove('moved')
    assert.equal(await files.exists('moved'), false)
  })
})

test('a link has the type of what it leads to, and a broken one is a link', async () => {
  await withSandbox(async ({ files, commands }) => {
    await commands.run('mkdir -p d/sub && cd d && echo x > f && ln -s f to-f && ln -s sub to-sub && ln -s gone broken')
    const found = (await files.list('d')).map((e) => [e.name, e.type, e.symlinkTarget])
    assert.deepEqual(found.sort(), [
      ['broken', FileType.SYMLINK, 'gone'],
      ['f', FileType.FILE, undefined],
      ['sub', FileType.DIR, undefined],
      ['to-f', FileType.FILE, '/home/user/d/f'],
      ['to-sub', FileType.DIR, '/home/user/d/sub'],
    ])
    assert.equal((await files.rename('d/to-sub', 'd/moved')).symlinkTarget, '/home/user/d/sub')
    await files.remove('d/moved')
    assert.equal(await files.exists('d/sub'), true)
  })
})

test('missing paths are not found and directories are no files', async () => {
  await withSandbox(async ({ files }) => {
    await assert.rejects(files.read('no-such'), FileNotFoundError)
    await assert.rejects(files.list('no-such'), FileNotFoundError)
    await assert.rejects(files.getInfo('no-such'), FileNotFoundError)
    await assert.rejects(files.read('/home/user'), InvalidArgumentError)
  })
})

test('metadata is kept with the file', async () => {
  await withSandbox(async ({ files }) => {
    const info = await files.write('note', 'x', { metadata: { source: 'js' } })
    assert.deepEqual(info.metadata, { source: 'js' })
    assert.deepEqual((await files.getInfo('note')).metadata, { source: 'js' })
  })
})

test('a watch tells what happens, below too, with the entry', async () => {
  await withSandbox(async ({ files }) => {
    await files.makeDir('w/sub')
    const events = []
    const handle = await files.watchDir('w', (event) => void events.push(event), { recursive: true, includeEntry: true })
    await files.write('w/sub/leaf', '12345')
    await eventually(
      () => events.some((e) => e.name === 'sub/leaf' && e.type === FilesystemEventType.CREATE),
      'create of sub/leaf',
    )
    await eventually(() => events.some((e) => e.entry?.size === 5), 'an event that carries the entry')
    await files.remove('w/sub/leaf')
    await eventually(
      () => events.some((e) => e.name === 'sub/leaf' && e.type === FilesystemEventType.REMOVE),
      'remove of sub/leaf',
    )
    await handle.stop()
    await assert.rejects(files.watchDir('no-such', () => {}), FileNotFoundError)
  })
})
