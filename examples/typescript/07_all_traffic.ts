// ALL_TRAFFIC stands for every address; a running sandbox can be closed and opened again.

import { ALL_TRAFFIC, CommandExitError, Sandbox } from 'e2b'

async function reach(sandbox: Sandbox, url: string) {
  try {
    const curl = `curl -sS --max-time 5 -o /dev/null -w '%{http_code}' ${url}`
    const { stdout } = await sandbox.commands.run(curl)
    console.log(`  ${url}: reached, HTTP ${stdout}`)
  } catch (error) {
    if (!(error instanceof CommandExitError)) throw error
    console.log(`  ${url}: blocked, ${error.stderr.trim()}`)
  }
}

const sandbox = await Sandbox.create({ network: { denyOut: [ALL_TRAFFIC] } })
console.log(`${ALL_TRAFFIC} denied`)
await reach(sandbox, 'https://1.1.1.1')
await sandbox.updateNetwork({ allowOut: ['1.1.1.1'], denyOut: [ALL_TRAFFIC] })
console.log('updated: 1.1.1.1 allowed')
await reach(sandbox, 'https://1.1.1.1')
await reach(sandbox, 'https://8.8.8.8')
await sandbox.updateNetwork({})
console.log('updated: no restriction')
await reach(sandbox, 'https://8.8.8.8')
await sandbox.kill()
