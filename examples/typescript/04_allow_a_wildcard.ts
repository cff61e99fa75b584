// Allow every name below a domain, but not the domain itself.

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

const sandbox = await Sandbox.create({
  network: { allowOut: ['*.mydomain.com'], denyOut: [ALL_TRAFFIC] },
})
console.log('*.mydomain.com allowed')
await reach(sandbox, 'https://www.mydomain.com')
await reach(sandbox, 'https://deep.down.mydomain.com')
await reach(sandbox, 'https://mydomain.com')
await reach(sandbox, 'https://google.com')
await sandbox.kill()
