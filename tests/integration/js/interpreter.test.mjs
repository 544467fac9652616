import test from 'node:test'
import assert from 'node:assert/strict'
import { NotFoundError, TimeoutError } from 'e2b'
import { withInterpreter } from './support.mjs'

test('state is kept, prints are logs, the last expression is the result', async () => {
  await withInterpreter(async (sandbox) => {
    await sandbox.runCode('x = 41')
    const execution = await sandbox.runCode("import sys\nprint('out')\nprint('err', file=sys.stderr)\nx + 1")
    assert.equal(execution.text, '42')
    assert.deepEqual(execution.logs.stdout, ['out\n'])
    assert.deepEqual(execution.logs.stderr, ['err\n'])
    assert.equal(execution.error, undefined)
  })
})

test('an error carries name, value and traceback', async () => {
  await withInterpreter(async (sandbox) => {
    const { error } = await sandbox.runCode('1 / 0')
    assert.deepEqual([error.name, error.value], ['ZeroDivisionError', 'division by zero'])
    assert.match(error.traceback, /ZeroDivisionError/)
  })
})

test('callbacks hear of everything', async () => {
  await withInterpreter(async (sandbox) => {
    const lines = []
    const results = []
    const errors = []
    await sandbox.runCode("for n in range(3): print(n)\ndisplay('shown')\nraise ValueError('boom')", {
      onStdout: (message) => lines.push(message.line),
      onResult: (result) => results.push(result.text),
      onError: (error) => errors.push(error.name),
    })
    assert.equal(lines.join(''), '0\n1\n2\n')
    assert.deepEqual(results, ['shown'])
    assert.deepEqual(errors, ['ValueError'])
  })
})

test('a plot is a png and a chart', async () => {
  await withInterpreter(async (sandbox) => {
    const { results } = await sandbox.runCode(
      "import matplotlib.pyplot as plt\nplt.plot([1, 2], [3, 4], label='l')\nplt.title('t')\nplt.show()",
    )
    const plot = results.find((result) => result.png)
    assert.ok(Buffer.from(plot.png, 'base64').subarray(1, 4).toString() === 'PNG')
    assert.deepEqual([plot.chart.type, plot.chart.title], ['line', 't'])
    assert.deepEqual(plot.chart.elements[0].points, [[1, 3], [2, 4]])
  })
})

test('a data frame is html and data', async () => {
  await withInterpreter(async (sandbox) => {
    const { results } = await sandbox.runCode("import pandas as pd\npd.DataFrame({'a': [1, 2]})")
    assert.match(results[0].html, /<table/)
    assert.deepEqual(results[0].data, { a: [1, 2] })
  })
})

test('contexts are apart, restart and end', async () => {
  await withInterpreter(async (sandbox) => {
    const one = await sandbox.createCodeContext()
    const two = await sandbox.createCodeContext({ cwd: '/tmp' })
    await sandbox.runCode('v = 1', { context: one })
    assert.equal((await sandbox.runCode('v', { context: two })).error.name, 'NameError')
    assert.equal((await sandbox.runCode('import os\nos.getcwd()', { context: two })).text, '/tmp')
    const ids = (await sandbox.listCodeContexts()).map((context) => context.id)
    assert.ok(ids.includes(one.id) && ids.includes(two.id))
    await sandbox.restartCodeContext(one)
    assert.equal((await sandbox.runCode('v', { context: one })).error.name, 'NameError')
    await sandbox.removeCodeContext(two)
    await assert.rejects(sandbox.runCode('1', { context: two }), NotFoundError)
  })
})

test('a timeout interrupts and the kernel goes on', async () => {
  await withInterpreter(async (sandbox) => {
    await sandbox.runCode("kept = 'yes'")
    await assert.rejects(sandbox.runCode('import time\nwhile True: time.sleep(0.1)', { timeoutMs: 2000 }), TimeoutError)
    assert.equal((await sandbox.runCode('kept')).text, 'yes')
  })
})

test('envs are seen by their cell only', async () => {
  await withInterpreter(async (sandbox) => {
    const code = "import os\nos.environ.get('CELL')"
    assert.equal((await sandbox.runCode(code, { envs: { CELL: 'v' } })).text, 'v')
    assert.equal((await sandbox.runCode(code)).text, undefined)
  })
})

test('every language of the package runs, and the contexts of two are there from the start', async () => {
  await withInterpreter(async (sandbox) => {
    assert.deepEqual((await sandbox.listCodeContexts()).map((context) => context.language), ['python', 'javascript'])
    const said = async (code, language) => {
      const execution = await sandbox.runCode(code, { language, timeoutMs: 80_000, envs: { CELL: 'v' } })
      assert.equal(execution.error, undefined)
      return execution.text ?? execution.logs.stdout.join('').trim()
    }
    assert.equal(await said("import os; os.environ['CELL']", 'python'), 'v')
    assert.equal(await said('process.env.CELL', 'javascript'), 'v')
    assert.equal(await said("const t: string = 't'; t", 'typescript'), 't')
    assert.equal(await said('echo $CELL', 'bash'), 'v')
    assert.equal(await said("Sys.getenv('CELL')", 'r'), '[1] "v"')
    assert.equal(await said('System.getenv("CELL")', 'java'), 'v')
    const { error } = await sandbox.runCode('(exit 3)', { language: 'bash' })
    assert.deepEqual([error.name, error.value], ['ExitCode', '3'])
  })
})
