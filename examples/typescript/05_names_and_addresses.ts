// Names, wildcards and addresses in one list.

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

const allowOut = ['api.example.com', '*.github.com', '8.8.8.8']
const sandbox = await Sandbox.create({ network: { allowOut, denyOut: [ALL_TRAFFIC] } })
console.log(`${allowOut.join(', ')} allowed`)
await reach(sandbox, 'https://api.example.com')
await reach(sandbox, 'https://api.github.com')
await reach(sandbox, 'https://8.8.8.8')
await reach(sandbox, 'https://1.1.1.1')
await sandbox.kill()
