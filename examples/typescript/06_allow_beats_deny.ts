// An address in both lists is allowed, whatever their order.

import { CommandExitError, Sandbox } from 'e2b'

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

const sandbox = await Sandbox.create({
  network: { denyOut: ['8.8.8.8', '1.1.1.1'], allowOut: ['8.8.8.8'] },
})
console.log('8.8.8.8 and 1.1.1.1 denied, 8.8.8.8 allowed')
await reach(sandbox, 'https://8.8.8.8')
await reach(sandbox, 'https://1.1.1.1')
await sandbox.kill()
