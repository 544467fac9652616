// What a sandbox may reach, as the JavaScript SDK asks for it. Who gets where is decided in tests/integration/test_egress.py.
import test from 'node:test'
import assert from 'node:assert/strict'
import { ALL_TRAFFIC, Sandbox } from 'e2b'
import { withSandbox } from './support.mjs'

test('a network policy is taken and told back, with its callables and rules', async () => {
  const rules = { 'api.test': [{ transform: { headers: { 'X-Key': 'k' } } }] }
  const network = {
    rules,
    allowOut: ({ rules }) => [...rules.keys(), '203.0.113.0/28'],
    denyOut: ({ allTraffic }) => [allTraffic],
  }
  await withSandbox(async (sandbox) => {
    const info = await sandbox.getInfo()
    assert.deepEqual(info.network.allowOut, ['api.test', '203.0.113.0/28'])
    assert.deepEqual(info.network.denyOut, [ALL_TRAFFIC])
    assert.deepEqual(info.network.rules, { 'api.test': [{ transform: { headers: { 'X-Key': '[hidden]' } } }] })
  }, { network })
})

test('updateNetwork replaces the policy of a running sandbox', async () => {
  await withSandbox(async (sandbox) => {
    assert.equal((await sandbox.getInfo()).allowInternetAccess, true)
    await sandbox.updateNetwork({ allowInternetAccess: false })
    assert.equal((await sandbox.getInfo()).allowInternetAccess, false)
    await Sandbox.updateNetwork(sandbox.sandboxId, { denyOut: ['203.0.113.7'] })
    const info = await sandbox.getInfo()
    assert.equal(info.allowInternetAccess, true)
    assert.deepEqual(info.network.denyOut, ['203.0.113.7'])
  })
})

test('a policy that makes no sense is refused with the reason', async () => {
  await assert.rejects(Sandbox.create({ network: { allowOut: ['good.test'] } }), /denyOut must hold 0\.0\.0\.0\/0/)
  await assert.rejects(Sandbox.create({ network: { denyOut: ['good.test'] } }), /takes addresses and CIDR ranges/)
})
