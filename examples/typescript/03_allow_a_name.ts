// Allow one name. Connections are made to that name, wherever the sandbox says it is.

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
  network: { allowOut: ['google.com'], denyOut: [ALL_TRAFFIC] },
})
console.log('google.com allowed')
await reach(sandbox, 'https://google.com')
await reach(sandbox, 'https://www.google.com')
await reach(sandbox, 'https://cloudflare.com')
await reach(sandbox, 'https://1.1.1.1')
console.log('google.com claimed to be at 203.0.113.66: still the real one answers')
await reach(sandbox, '--resolve google.com:443:203.0.113.66 https://google.com')
await sandbox.kill()
