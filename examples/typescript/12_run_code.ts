// Run code that draws a chart, and keep the picture.

import { mkdtempSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Sandbox } from '@e2b/code-interpreter'

const code = `
import matplotlib.pyplot as plt
import numpy as np

x = np.linspace(0, 10, 200)
plt.plot(x, np.sin(x), label="sine")
plt.plot(x, np.cos(x), label="cosine")
plt.title("Two waves")
plt.legend()
plt.show()
float(np.sin(x).max().round(3))
`

const sandbox = await Sandbox.create()
const execution = await sandbox.runCode(code, {
  onResult: (result) => console.log('result:', ...result.formats())
})
console.log(`value of the last line: ${execution.text}`)
const plot = execution.results[0]
console.log(`chart: ${plot.chart!.type}, ${plot.chart!.title}, ${plot.chart!.elements.length} lines`)
const picture = join(mkdtempSync(join(tmpdir(), 'plot-')), 'waves.png')
writeFileSync(picture, Buffer.from(plot.png!, 'base64'))
console.log(`picture: ${picture}, ${statSync(picture).size} bytes`)
await sandbox.kill()
