// Definitions of templates, as the published SDK's builder makes them: all in the client, without a server.
import test from 'node:test'
import assert from 'node:assert/strict'
import { mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Template, waitForPort } from 'e2b'

const definition = async (builder) => JSON.parse(await Template.toJSON(builder, false))
const steps = async (builder) => (await definition(builder)).steps.map((step) => [step.type, step.args[0]])

test('every base is named in the definition', async () => {
  const bases = [
    [Template().fromAlpineImage('3.20'), 'alpine:3.20'],
    [Template().fromArchImage(), 'archlinux:latest'],
    [Template().fromBaseImage(), 'e2bdev/base'],
    [Template().fromBunImage('1'), 'oven/bun:1'],
    [Template().fromDebianImage('bookworm'), 'debian:bookworm'],
    [Template().fromFedoraImage('41'), 'fedora:41'],
    [Template().fromImage('my/image:1'), 'my/image:1'],
    [Template().fromNodeImage('22'), 'node:22'],
    [Template().fromPythonImage('3.12'), 'python:3.12'],
    [Template().fromUbuntuImage('24.04'), 'ubuntu:24.04'],
  ]
  for (const [builder, image] of bases) assert.equal((await definition(builder)).fromImage, image)
  assert.equal((await definition(Template().fromTemplate('base'))).fromTemplate, 'base')
})

test('a private registry is named with its credentials', async () => {
  const amazon = Template().fromAWSRegistry('x/y', { accessKeyId: 'id', secretAccessKey: 'word', region: 'eu' })
  const google = Template().fromGCPRegistry('x/y', { serviceAccountJSON: { project: 'p' } })
  assert.equal((await definition(amazon)).fromImageRegistry.awsRegion, 'eu')
  assert.equal((await definition(google)).fromImageRegistry.type, 'gcp')
})

test('a Dockerfile becomes a definition and a definition a Dockerfile', async () => {
  const builder = Template().fromDockerfile('FROM debian:12\nRUN apt-get update\nENV A=b\nWORKDIR /srv\nUSER www-data\n')
  assert.equal(JSON.parse(await Template.toJSON(builder)).fromImage, 'debian:12')
  assert.match(Template.toDockerfile(builder), /RUN apt-get update\nENV A=b\nWORKDIR \/srv\nUSER www-data\n/)
})

test('every step of a builder is in the definition', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'template-'))
  writeFileSync(join(folder, 'here'), 'content')
  const builder = Template({ fileContextPath: folder }).fromImage('image')
  builder.setEnvs({ A: '1' })
  builder.setUser('root')
  builder.setWorkdir('/srv')
  builder.runCmd(['one', 'two'])
  builder.copy('here', 'there')
  builder.copyItems([{ src: 'here', dest: 'again' }])
  builder.makeDir('/made')
  builder.makeSymlink('/from', '/to')
  builder.rename('/a', '/b')
  builder.remove('/gone')
  builder.aptInstall('git')
  builder.pipInstall('numpy')
  builder.npmInstall('left-pad')
  builder.bunInstall('elysia')
  builder.gitClone('https://example.com/r.git', '/repo')
  assert.deepEqual(await steps(builder), [
    ['ENV', 'A'],
    ['USER', 'root'],
    ['WORKDIR', '/srv'],
    ['RUN', 'one && two'],
    ['COPY', 'here'],
    ['COPY', 'here'],
    ['RUN', 'mkdir -p /made'],
    ['RUN', 'ln -s /from /to'],
    ['RUN', 'mv /a /b'],
    ['RUN', 'rm /gone'],
    ['RUN', 'apt-get update && DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes apt-get install -y git'],
    ['RUN', 'pip install numpy'],
    ['RUN', 'npm install left-pad'],
    ['RUN', 'bun install elysia'],
    ['RUN', 'git clone https://example.com/r.git /repo'],
  ])
})

test('start and ready commands and a skipped cache are in the definition', async () => {
  const builder = Template().skipCache().fromImage('image')
  builder.runCmd('before')
  const started = await definition(builder.setStartCmd('serve', waitForPort(8000)))
  assert.equal(started.startCmd, 'serve')
  assert.match(started.readyCmd, /8000/)
  assert.equal(started.force, true)
  const ready = Template().fromImage('image')
  const builder2 = ready.setReadyCmd('true')
  assert.equal((await definition(builder2)).readyCmd, 'true')
})

test('what a template of its own offers can be named', async () => {
  const builder = Template().fromTemplate('mcp-gateway')
  builder.addMcpServer('exa')
  assert.match((await steps(builder))[0][1], /exa/)
  const container = Template().fromTemplate('devcontainer')
  container.betaDevContainerPrebuild('/repo')
  container.betaSetDevContainerStart('/repo')
  assert.match(JSON.stringify(await definition(container)), /\/repo/)
})
