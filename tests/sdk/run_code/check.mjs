// What `runCode` must do with any 2.x version of the JavaScript package.
import assert from 'node:assert/strict'
import { Sandbox } from '@e2b/code-interpreter'

const sandbox = await Sandbox.create({ timeoutMs: 120_000 })
try {
  const seen = []
  const execution = await sandbox.runCode("x = 20\nprint('out')\nx + 1", {
    onStdout: (message) => seen.push(message.line)
  })
  assert.equal(execution.text, '21')
  assert.deepEqual(seen, ['out\n'])
  const told = await sandbox.runCode("import os; os.getenv('V')", { envs: { V: 'w' } })
  assert.equal(told.text, 'w')
  const { error } = await sandbox.runCode('1 / 0')
  assert.equal(error.name, 'ZeroDivisionError')
  const plot = await sandbox.runCode(
    "import matplotlib.pyplot as plt; plt.bar(['a', 'b'], [1, 2]); plt.show()")
  assert.equal(Buffer.from(plot.results[0].png, 'base64').subarray(1, 4).toString(), 'PNG')
  assert.equal(plot.results[0].chart.type, 'bar')
  const context = await sandbox.createCodeContext({ cwd: '/tmp', language: 'javascript' })
  assert.equal((await sandbox.runCode('process.cwd()', { context })).text, '/tmp')
  const bash = await sandbox.runCode('echo bash', { language: 'bash' })
  assert.deepEqual(bash.logs.stdout, ['bash\n'])
  if (sandbox.listCodeContexts) {
    await sandbox.restartCodeContext(context.id)
    await sandbox.removeCodeContext(context.id)
    const left = (await sandbox.listCodeContexts()).map((one) => one.id)
    assert.ok(!left.includes(context.id))
  }
} finally {
  await sandbox.kill()
}
console.log('works')
