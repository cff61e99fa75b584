// A sandbox whose URLs need a token.

import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create({ network: { allowPublicTraffic: false } })
await sandbox.commands.run('python -m http.server 8080', { background: true })
const url = `https://${sandbox.getHost(8080)}`

const refused = await fetch(url)
console.log(`without the token: ${refused.status}, ${(await refused.json()).message}`)

const headers = { 'e2b-traffic-access-token': sandbox.trafficAccessToken! }
const allowed = await fetch(url, { headers })
console.log(`with the token: ${allowed.status}`)
await sandbox.kill()
