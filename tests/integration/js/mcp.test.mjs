import test from 'node:test'
import assert from 'node:assert/strict'
import { Sandbox, SandboxError } from 'e2b'

test('a gateway answers on its URL to its token alone', async () => {
  const sandbox = await Sandbox.create({ mcp: {}, timeoutMs: 120_000 })
  try {
    const url = new URL(sandbox.getMcpUrl())
    assert.equal(url.pathname, '/mcp')
    assert.equal(url.host, sandbox.getHost(50005))
    const token = await sandbox.getMcpToken()
    assert.equal(await (await Sandbox.connect(sandbox.sandboxId)).getMcpToken(), token)
    const headers = {
      'e2b-sandbox-id': sandbox.sandboxId,
      'e2b-sandbox-port': '50005',
      'content-type': 'application/json',
      accept: 'application/json, text/event-stream',
    }
    const clientInfo = { name: 'test', version: '1' }
    const params = { protocolVersion: '2025-06-18', capabilities: {}, clientInfo }
    const body = JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'initialize', params })
    const ask = (more) =>
      fetch(`${process.env.E2B_SANDBOX_URL}/mcp`, { method: 'POST', body, headers: { ...headers, ...more } })
    assert.equal((await ask({})).status, 401)
    const answer = await ask({ authorization: `Bearer ${token}` })
    assert.equal(answer.status, 200)
    assert.match(await answer.text(), /"mcp-gateway"/)
  } finally {
    await sandbox.kill()
  }
})

test('a server that cannot be had fails the create with its name', async () => {
  const mcp = { 'github/acme/none': { runCmd: 'true', installCmd: 'false' } }
  await assert.rejects(Sandbox.create({ mcp, network: { denyOut: ['0.0.0.0/0'] } }), (error) => {
    assert.ok(error instanceof SandboxError)
    assert.match(error.message, /MCP gateway.*github\/acme\/none/s)
    return true
  })
})
