// Every port of a sandbox has a public host name.

import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create()
const host = sandbox.getHost(3000)
console.log(`port 3000 is at https://${host}`)
const response = await fetch(`https://${host}`)
console.log(`nothing listens yet: ${(await response.json()).message}`)
await sandbox.kill()
