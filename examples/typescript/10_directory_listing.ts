// Serve the home directory and look at it from outside.

import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create()
await sandbox.commands.run('python -m http.server 3000', { background: true })
const host = sandbox.getHost(3000)
const response = await fetch(`https://${host}`)
console.log(`https://${host}: ${response.status}`)
console.log(await response.text())
await sandbox.kill()
