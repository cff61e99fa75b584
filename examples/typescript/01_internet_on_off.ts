// A sandbox has internet unless you say otherwise.

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

for (const allowInternetAccess of [true, false]) {
  console.log(`allowInternetAccess=${allowInternetAccess}`)
  const sandbox = await Sandbox.create({ allowInternetAccess })
  await reach(sandbox, 'https://google.com')
  await reach(sandbox, 'https://1.1.1.1')
  await sandbox.kill()
}
