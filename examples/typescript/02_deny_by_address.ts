// Deny everything but some addresses, or deny a single address.

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

console.log('everything denied but 1.1.1.1 and 8.8.8.0/24')
const closed = await Sandbox.create({
  network: { allowOut: ['1.1.1.1', '8.8.8.0/24'], denyOut: [ALL_TRAFFIC] },
})
await reach(closed, 'https://1.1.1.1')
await reach(closed, 'https://8.8.8.8')
await reach(closed, 'https://9.9.9.9')
await closed.kill()

console.log('8.8.8.8 denied')
const open = await Sandbox.create({ network: { denyOut: ['8.8.8.8'] } })
await reach(open, 'https://1.1.1.1')
await reach(open, 'https://8.8.8.8')
await open.kill()
