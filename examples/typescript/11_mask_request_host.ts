// Development servers often refuse a Host that they do not know: show them one that they do.

import { Sandbox } from 'e2b'

const server = `
require('node:http').createServer(({ headers }, response) => {
  response.end('Host: ' + headers.host + '\\nX-Forwarded-Host: ' + headers['x-forwarded-host'] + '\\n')
}).listen(8080)
`

const sandbox = await Sandbox.create({ network: { maskRequestHost: 'localhost:${PORT}' } })
await sandbox.files.write('server.cjs', server)
await sandbox.commands.run('node server.cjs', { background: true })
const host = sandbox.getHost(8080)
console.log(`requested: https://${host}`)
console.log(`the server saw:\n${await (await fetch(`https://${host}`)).text()}`)
await sandbox.kill()
