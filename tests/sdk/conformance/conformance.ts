// Calls the public methods of the JavaScript SDK that is installed next to this file, whichever 2.x
// version it is. Works against the node that the environment points at and prints one line of JSON
// for each method, named as in Python so that both fill one table; see conformance.py.

import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { setTimeout as sleep } from 'node:timers/promises'

import * as sdk from 'e2b'

const SDK: any = sdk
const SECONDS = 60

class Absent extends Error {}

const entry = createRequire(import.meta.url).resolve('e2b')
const declarations = readFileSync(entry.replace(/\.m?js$/, '.d.ts'), 'utf8')

/** JavaScript ignores options that it does not know; what the SDK declares tells. */
function option(name: string): void {
  if (!new RegExp(`\\b${name}\\??:`).test(declarations)) throw new Absent(name)
}

/** A method of the SDK, bound. */
function member(owner: any, name: string): any {
  if (owner?.[name] === undefined) throw new Absent(name)
  return typeof owner[name] === 'function' ? owner[name].bind(owner) : owner[name]
}

async function until<T>(condition: () => T | Promise<T>, seconds = 10): Promise<T> {
  for (const end = Date.now() + seconds * 1000; ; await sleep(50)) {
    const value = await condition()
    if (value) return value
    assert(Date.now() < end, 'it did not happen')
  }
}

async function raised(names: string[], call: () => Promise<unknown>): Promise<any> {
  const kinds = names.map((name) => SDK[name]).filter((kind) => kind !== undefined)
  let value
  try {
    value = await call()
  } catch (error) {
    assert(kinds.some((kind) => error instanceof kind), `${error} instead of ${names}`)
    return error
  }
  assert.fail(`${JSON.stringify(value)} instead of ${names}`)
}

const made: any[] = []
let sandbox: any

async function create(template?: string | object, options?: object): Promise<any> {
  const fresh = await (typeof template === 'string'
    ? SDK.Sandbox.create(template, options)
    : SDK.Sandbox.create(template))
  made.push(fresh)
  return fresh
}

async function folder(): Promise<string> {
  const path = `/home/user/${randomUUID()}`
  await sandbox.files.makeDir(path)
  return path
}

const fails = (box: any, command: string) =>
  raised(['CommandExitError'], () => box.commands.run(command))
const reach = (address: string) => `curl -sk -m 5 -o /dev/null https://${address}`
const bytes = (text: string) => new TextEncoder().encode(text)

const checks: Record<string, () => Promise<void>> = {
  'Sandbox.create': async () => {
    sandbox = await create({
      timeoutMs: 900_000,
      metadata: { run: 'a b&c=d' },
      envs: { GIVEN: 'yes' },
    })
    assert.equal((await sandbox.commands.run('echo $GIVEN')).stdout, 'yes\n')
  },
  'Sandbox.create(secure)': async () => {
    const box = await create({ secure: true })
    await box.files.write('a', 'b')
  },
  'Sandbox.create(allow_internet_access)': async () => {
    option('allowInternetAccess')
    const closed = await create({ allowInternetAccess: false })
    await fails(closed, reach('1.1.1.1'))
    await sandbox.commands.run(reach('1.1.1.1'))
  },
  'Sandbox.create(network)': async () => {
    option('allowOut')
    const only = await create({ network: { denyOut: ['0.0.0.0/0'], allowOut: ['1.1.1.1'] } })
    await only.commands.run(reach('1.1.1.1'))
    await fails(only, reach('8.8.8.8'))
  },
  'Sandbox.create(idempotency_key)': async () => {
    option('idempotencyKey')
    const idempotencyKey = `key-${randomUUID()}`
    const [first, second] = [await create({ idempotencyKey }), await create({ idempotencyKey })]
    assert.equal(first.sandboxId, second.sandboxId)
  },
  'Sandbox.connect': async () => {
    const other = await SDK.Sandbox.connect(sandbox.sandboxId)
    assert.equal((await other.commands.run('echo $GIVEN')).stdout, 'yes\n')
  },
  'Sandbox.list': async () => {
    const pages = SDK.Sandbox.list({ query: { metadata: { run: 'a b&c=d' } }, limit: 1 })
    const seen = []
    while (pages.hasNext) seen.push(...(await pages.nextItems()))
    assert(seen.some((item: any) => item.sandboxId === sandbox.sandboxId))
  },
  'Sandbox.get_info': async () => {
    const info = await sandbox.getInfo()
    assert.deepEqual(
      [info.sandboxId, info.metadata],
      [sandbox.sandboxId, { run: 'a b&c=d' }],
    )
    assert(info.startedAt < info.endAt)
  },
  'Sandbox.set_timeout': async () => {
    await sandbox.setTimeout(1_200_000)
    const left = (await sandbox.getInfo()).endAt.getTime() - Date.now()
    assert(left > 1_100_000 && left < 1_210_000, `${left}`)
  },
  'Sandbox.is_running': async () => assert.equal(await sandbox.isRunning(), true),
  'Sandbox.kill': async () => {
    const box = await create()
    await box.kill()
    assert.equal(await box.isRunning(), false)
    assert.equal(await SDK.Sandbox.kill(box.sandboxId), false)
    assert.equal(await SDK.Sandbox.kill('nonexistingsandbox'), false)
  },
  'Sandbox.get_host': async () => {
    const server = await sandbox.commands.run('python3 -m http.server 3210 --directory /etc', {
      background: true,
    })
    const url = `https://${sandbox.getHost(3210)}/hostname`
    assert(await until(async () => (await fetch(url)).ok))
    await server.kill()
  },
  'Sandbox.get_metrics': async () => {
    const found = await until(async () => {
      const points = await sandbox.getMetrics()
      return points.length > 0 && points
    }, 30)
    assert((found as any)[0].cpuCount >= 1 && (found as any)[0].memTotal > 0)
  },
  'Sandbox.update_network': async () => {
    const update = member(sandbox, 'updateNetwork')
    await update({ denyOut: ['8.8.8.8'] })
    await fails(sandbox, reach('8.8.8.8'))
    await update({})
    await sandbox.commands.run(reach('8.8.8.8'))
  },
  'Sandbox.upload_url': async () => {
    const url = await sandbox.uploadUrl('signed.txt', { useSignatureExpiration: 100_000 })
    const form = new FormData()
    form.append('file', new Blob(['signed']), 'signed.txt')
    assert.equal((await fetch(url, { method: 'POST', body: form })).status, 200)
    assert.equal(await sandbox.files.read('signed.txt'), 'signed')
  },
  'Sandbox.download_url': async () => {
    await sandbox.files.write('down load.txt', 'down')
    const url = await sandbox.downloadUrl('down load.txt', { useSignatureExpiration: 100_000 })
    assert.equal(await (await fetch(url)).text(), 'down')
  },
  'Sandbox.pause': async () => {
    const box = await create()
    const pause = box.pause ? member(box, 'pause') : member(box, 'betaPause')
    const counter = 'for i in $(seq 100000); do echo $i > new; mv new count; sleep 0.05; done'
    await box.commands.run(counter, {
      background: true,
      timeoutMs: 0,
    })
    await until(() => box.files.exists('count'))
    await pause()
    assert.equal(await box.isRunning(), false)
    const again = await SDK.Sandbox.connect(box.sandboxId)
    assert.equal(again.sandboxId, box.sandboxId)
    const first = Number(await box.files.read('count'))
    await sleep(500)
    assert(Number(await box.files.read('count')) > first, 'the process did not go on')
  },
  'Sandbox.create(lifecycle)': async () => {
    option('onTimeout')
    const box = await create({ timeoutMs: 2000, lifecycle: { onTimeout: 'pause' } })
    await until(async () => (await box.getInfo()).state === 'paused', 20)
    await box.connect()
    assert.equal(await box.isRunning(), true)
  },
  'Sandbox.create_snapshot': async () => {
    const createSnapshot = member(sandbox, 'createSnapshot')
    await sandbox.files.write('kept.txt', 'kept')
    const { snapshotId } = await createSnapshot()
    assert.equal(await (await create(snapshotId)).files.read('kept.txt'), 'kept')
  },
  'Sandbox.list_snapshots': async () => {
    const listSnapshots = member(sandbox, 'listSnapshots')
    const { snapshotId } = await sandbox.createSnapshot()
    const pages = listSnapshots()
    const seen = []
    while (pages.hasNext) seen.push(...(await pages.nextItems()))
    assert(seen.some((item: any) => item.snapshotId === snapshotId))
  },
  'Sandbox.delete_snapshot': async () => {
    const deleteSnapshot = member(SDK.Sandbox, 'deleteSnapshot')
    const { snapshotId } = await sandbox.createSnapshot()
    assert.equal(await deleteSnapshot(snapshotId), true)
    assert.equal(await deleteSnapshot(snapshotId), false)
  },
  'Sandbox.fork': async () => {
    const fork = member(sandbox, 'fork')
    await sandbox.files.write('kept.txt', 'kept')
    const copies = await fork({ count: 2 })
    made.push(...copies)
    assert.equal(copies.length, 2)
    for (const copy of copies) assert.equal(await copy.files.read('kept.txt'), 'kept')
  },
  'E2B (bound client)': async () => {
    if (SDK.E2B === undefined) throw new Absent()
    const other = await new SDK.E2B().Sandbox.connect(sandbox.sandboxId)
    assert.equal((await other.commands.run('echo hi')).stdout, 'hi\n')
  },

  'commands.run': async () => {
    const seen: string[] = []
    const result = await sandbox.commands.run('echo "$A $(whoami) $(pwd)"; echo bad >&2', {
      envs: { A: 'a' },
      user: 'root',
      cwd: '/tmp',
      onStdout: (text: string) => void seen.push(text),
    })
    assert.deepEqual(
      [result.stdout, result.stderr, result.exitCode, seen.join('')],
      ['a root /tmp\n', 'bad\n', 0, 'a root /tmp\n'],
    )
  },
  'commands.run(exit code)': async () => {
    const failed = await fails(sandbox, 'echo no; exit 7')
    assert.deepEqual([failed.exitCode, failed.stdout], [7, 'no\n'])
  },
  'commands.run(timeout)': async () => {
    await raised(['TimeoutError'], () => sandbox.commands.run('sleep 30', { timeoutMs: 1000 }))
  },
  'commands.run(large output)': async () => {
    const result = await sandbox.commands.run("head -c 3000000 /dev/zero | tr '\\0' x")
    assert(result.stdout === 'x'.repeat(3_000_000))
  },
  'commands.list': async () => {
    const handle = await sandbox.commands.run('sleep 71', { background: true })
    const listed = await sandbox.commands.list()
    await handle.kill()
    assert(listed.some((item: any) => item.pid === handle.pid))
  },
  'commands.kill': async () => {
    const handle = await sandbox.commands.run('sleep 72', { background: true })
    assert.equal(await sandbox.commands.kill(handle.pid), true)
    await raised(['CommandExitError'], () => handle.wait())
    assert.equal(await sandbox.commands.kill(999_999), false)
  },
  'commands.connect': async () => {
    const options = { background: true, stdin: true }
    const handle = await sandbox.commands.run('read line; echo $line', options)
    const again = await sandbox.commands.connect(handle.pid)
    await sandbox.commands.sendStdin(handle.pid, 'again\n')
    assert.equal((await again.wait()).stdout, 'again\n')
  },
  'commands.send_stdin': async () => {
    const options = { background: true, stdin: true }
    const handle = await sandbox.commands.run('read line; echo got $line', options)
    await sandbox.commands.sendStdin(handle.pid, 'a\n')
    assert.equal((await handle.wait()).stdout, 'got a\n')
  },
  'commands.close_stdin': async () => {
    const close = member(sandbox.commands, 'closeStdin')
    const handle = await sandbox.commands.run('cat', { background: true, stdin: true })
    await sandbox.commands.sendStdin(handle.pid, 'all')
    await close(handle.pid)
    assert.equal((await handle.wait()).stdout, 'all')
  },
  'commands.stream_input': async () => void member(sandbox.commands, 'streamInput'),
  'CommandHandle.disconnect': async () => {
    const command = 'sleep 1; echo late > late.txt'
    await (await sandbox.commands.run(command, { background: true })).disconnect()
    await until(() => sandbox.files.exists('late.txt'))
  },
  'CommandHandle.kill': async () => {
    const handle = await sandbox.commands.run('sleep 73', { background: true })
    assert.equal(await handle.kill(), true)
  },

  'pty.create': async () => {
    const seen = new Terminal()
    const handle = await seen.open({ envs: { B: 'bee' } })
    await sandbox.pty.sendInput(handle.pid, bytes('echo $B $(tput cols); exit\n'))
    assert.equal((await handle.wait()).exitCode, 0)
    assert(seen.text.includes('bee 111'), seen.text)
  },
  'pty.resize': async () => {
    const seen = new Terminal()
    const handle = await seen.open()
    await sandbox.pty.resize(handle.pid, { cols: 123, rows: 40 })
    await sandbox.pty.sendInput(handle.pid, bytes('echo now $(tput cols); exit\n'))
    await handle.wait()
    assert(seen.text.includes('now 123'), seen.text)
  },
  'pty.kill': async () => {
    const handle = await new Terminal().open()
    assert.equal(await sandbox.pty.kill(handle.pid), true)
    assert.equal(await sandbox.pty.kill(999_999), false)
  },
  'pty.connect': async () => {
    const connect = member(sandbox.pty, 'connect')
    const seen = new Terminal()
    const handle = await new Terminal().open()
    const again = await connect(handle.pid, { onData: seen.add })
    await sandbox.pty.sendInput(handle.pid, bytes("echo he''re; exit\n"))
    await again.wait()
    assert(seen.text.includes('here'), seen.text)
  },
  'pty.stream_input': async () => void member(sandbox.pty, 'streamInput'),

  'files.write': async () => {
    const path = `${await folder()}/new/a`
    const data = ['text é', new Blob(['blob']), bytes('bytes').buffer]
    for (const [index, text] of ['text é', 'blob', 'bytes'].entries()) {
      assert.equal((await sandbox.files.write(path, data[index])).path, path)
      assert.equal(await sandbox.files.read(path), text)
    }
  },
  'files.write(gzip)': async () => {
    option('gzip')
    const path = `${await folder()}/a`
    await sandbox.files.write(path, 'x'.repeat(100_000), { gzip: true })
    assert.equal(await sandbox.files.read(path, { gzip: true }), 'x'.repeat(100_000))
  },
  'files.write(metadata)': async () => {
    if (!/interface FilesystemWriteOpts[^}]*metadata\?:/.test(declarations)) throw new Absent()
    const path = `${await folder()}/a`
    await sandbox.files.write(path, 'a', { metadata: { origin: 'here' } })
    assert.deepEqual((await sandbox.files.getInfo(path)).metadata, { origin: 'here' })
  },
  'files.write_files': async () => {
    const path = await folder()
    const files = [...'abc'].map((name) => ({ path: `${path}/${name}`, data: name }))
    const written = await sandbox.files.write(files)
    assert.deepEqual(written.map((item: any) => item.path), files.map((item) => item.path))
    assert.equal((await sandbox.commands.run(`cat ${path}/*`)).stdout, 'abc')
  },
  'files.read': async () => {
    const path = await folder()
    const data = new Uint8Array(1_000_000).map((_, index) => index)
    await sandbox.files.write(`${path}/a`, data.buffer)
    assert.deepEqual(await sandbox.files.read(`${path}/a`, { format: 'bytes' }), data)
    const blob = await sandbox.files.read(`${path}/a`, { format: 'blob' })
    assert.equal(blob.size, data.length)
    const chunks = []
    const stream = await sandbox.files.read(`${path}/a`, { format: 'stream' })
    for await (const chunk of stream) chunks.push(chunk)
    assert.deepEqual(new Uint8Array(Buffer.concat(chunks)), data)
    await sandbox.files.write(`${path}/empty`, '')
    assert.equal(await sandbox.files.read(`${path}/empty`), '')
    await raised(['NotFoundError', 'FileNotFoundError'], () => sandbox.files.read('/no/such/file'))
  },
  'files.list': async () => {
    const path = await folder()
    await sandbox.commands.run(`mkdir -p ${path}/d/e && touch ${path}/d/f`)
    const found = await sandbox.files.list(path, { depth: 2 })
    const wanted = ['d', 'd/e', 'd/f'].map((name) => `${path}/${name}`)
    assert.deepEqual(found.map((item: any) => item.path), wanted)
  },
  'files.exists': async () => {
    assert.equal(await sandbox.files.exists('/etc/hostname'), true)
    assert.equal(await sandbox.files.exists('/etc/nothing'), false)
  },
  'files.get_info': async () => {
    const path = await folder()
    const command = `echo 1234 > ${path}/a; chmod 640 ${path}/a; ln -s a ${path}/b`
    await sandbox.commands.run(command)
    const info = await member(sandbox.files, 'getInfo')(`${path}/a`)
    assert.deepEqual(
      [info.size, info.mode, info.owner, info.permissions],
      [5, 0o640, 'user', '-rw-r-----'],
    )
    assert.equal((await sandbox.files.getInfo(`${path}/b`)).symlinkTarget, `${path}/a`)
  },
  'files.make_dir': async () => {
    const path = `${await folder()}/a/b/c`
    assert.equal(await sandbox.files.makeDir(path), true)
    assert.equal(await sandbox.files.makeDir(path), false)
  },
  'files.rename': async () => {
    const path = await folder()
    await sandbox.files.write(`${path}/a`, 'a')
    const moved = await sandbox.files.rename(`${path}/a`, `${path}/b`)
    assert.deepEqual([moved.name, moved.path], ['b', `${path}/b`])
    assert.equal(await sandbox.files.exists(`${path}/a`), false)
  },
  'files.remove': async () => {
    const path = await folder()
    await sandbox.files.write(`${path}/a/b`, 'a')
    await sandbox.files.remove(`${path}/a`)
    assert.equal(await sandbox.files.exists(`${path}/a`), false)
  },
  'files.watch_dir': async () => {
    const path = await folder()
    await sandbox.files.makeDir(`${path}/below`)
    const seen: any[] = []
    const add = (event: any) => void seen.push(event)
    const handle = await sandbox.files.watchDir(path, add, { recursive: true })
    await sandbox.files.write(`${path}/below/a`, 'a')
    await until(() => seen.length >= 3)
    assert.deepEqual(seen.map((event) => event.name), ['below/a', 'below/a', 'below/a'])
    assert.deepEqual(seen.map((event) => event.type), ['create', 'chmod', 'write'])
    await handle.stop()
  },
  'files.watch_dir(include_entry)': async () => {
    option('includeEntry')
    const path = await folder()
    const seen: any[] = []
    const add = (event: any) => void seen.push(event)
    const handle = await sandbox.files.watchDir(path, add, { includeEntry: true })
    await sandbox.files.write(`${path}/a`, 'abc')
    await until(() => seen.length >= 3)
    assert.deepEqual([seen.at(-1).entry.path, seen.at(-1).entry.size], [`${path}/a`, 3])
    await handle.stop()
  },

  'git.init, add, commit, status': async () => {
    const [git, path] = await repository()
    const status = await git.status(path)
    assert.deepEqual([status.currentBranch, status.isClean], ['main', true])
    await sandbox.files.write(`${path}/b`, 'new')
    const changed = (await git.status(path)).fileStatus
    assert.deepEqual(changed.map((item: any) => item.name), ['b'])
  },
  'git.branches, create_branch, checkout_branch, delete_branch': async () => {
    const [git, path] = await repository()
    await git.createBranch(path, 'side')
    const found = await git.branches(path)
    assert.deepEqual([found.branches.sort(), found.currentBranch], [['main', 'side'], 'side'])
    await git.checkoutBranch(path, 'main')
    await git.deleteBranch(path, 'side')
    assert.deepEqual((await git.branches(path)).branches, ['main'])
  },
  'git.clone, push, pull': async () => {
    const [git, path] = await repository()
    const origin = { remote: 'origin', branch: 'main' }
    await git.init(`${path}.git`, { bare: true, initialBranch: 'main' })
    await git.remoteAdd(path, 'origin', `${path}.git`)
    await git.push(path, origin)
    await git.clone(`${path}.git`, { path: `${path}-copy` })
    await sandbox.files.write(`${path}/a`, 'two\n')
    await git.add(path)
    await git.commit(path, 'second', { authorName: 'A', authorEmail: 'a@example.com' })
    await git.push(path, origin)
    await git.pull(`${path}-copy`)
    assert.equal(await sandbox.files.read(`${path}-copy/a`), 'two\n')
  },
  'git.remote_add, remote_get': async () => {
    const [git, path] = await repository()
    const url = 'https://git.example.com/a.git'
    await git.remoteAdd(path, 'origin', url)
    assert.equal(await git.remoteGet(path, 'origin'), url)
  },
  'git.reset, restore': async () => {
    const [git, path] = await repository()
    for (const undo of [
      () => git.restore(path, { paths: ['a'] }),
      () => git.reset(path, { mode: 'hard' }),
    ]) {
      await sandbox.files.write(`${path}/a`, 'spoilt\n')
      await undo()
      assert.equal(await sandbox.files.read(`${path}/a`), 'one\n')
    }
  },
  'git.set_config, get_config, configure_user': async () => {
    const [git, path] = await repository()
    const local = { scope: 'local', path }
    await git.setConfig('user.name', 'B', local)
    assert.equal(await git.getConfig('user.name', local), 'B')
    await git.configureUser('C', 'c@example.com', local)
    assert.equal(await git.getConfig('user.email', local), 'c@example.com')
  },
  'git.dangerously_authenticate': async () => {
    const authenticate = member(member(sandbox, 'git'), 'dangerouslyAuthenticate')
    await authenticate({ username: 'name', password: 'secret', host: 'git.example.com' })
    const stored = (await sandbox.commands.run('cat ~/.git-credentials')).stdout
    assert(stored.includes('name:secret@git.example.com'))
  },

  'error: wrong API key': async () => {
    const apiKey = `e2b_${'0'.repeat(40)}`
    await raised(['AuthenticationError'], () => SDK.Sandbox.create({ apiKey }))
  },
  'error: unknown sandbox': async () => {
    const box = await create()
    await box.kill()
    // The first SDKs of 2.x gave every failed request to the API the same type.
    const missing = ['SandboxNotFoundError', 'NotFoundError']
    if (SDK.SandboxNotFoundError === undefined) missing.push('SandboxError')
    await raised(missing, () => box.getInfo())
    await raised(missing, () => box.setTimeout(10_000))
    await raised(missing, () => SDK.Sandbox.connect(box.sandboxId))
    await raised([...missing, 'TimeoutError'], () => box.commands.run('true'))
  },
  'error: invalid argument': async () => {
    const kind = ['InvalidArgumentError']
    await raised(kind, () => sandbox.files.read('/etc'))
    await raised(kind, () => sandbox.commands.run('true', { cwd: '/no/such/place' }))
  },
  'error: killed while a command runs': async () => {
    const box = await create()
    const handle = await box.commands.run('sleep 60', { background: true })
    const ended = raised(['SandboxError', 'TimeoutError'], () => handle.wait())
    await box.kill()
    const begun = Date.now()
    assert(!((await ended) instanceof SDK.CommandExitError))
    assert(Date.now() - begun < 5000)
  },
  'error: unknown template': async () => {
    const error = await raised(['SandboxError'], () => SDK.Sandbox.create('no-such-template'))
    assert(String(error).includes('no-such-template'))
  },

  'Template.build': async () => {
    const template = SDK.Template().fromBaseImage()
    const options = { cpuCount: 1, memoryMB: 512 }
    await (SDK.Template.build.length === 2 && !/static build\([^)]*name: string/.test(declarations)
      ? SDK.Template.build(template, { alias: 'conformance', ...options })
      : SDK.Template.build(template, 'conformance', options))
  },
  'Volume.create': async () => void (await member(SDK.Volume, 'create')('conformance')),
  'Secret.create': async () => void (await member(SDK.Secret, 'create')('conformance', 'value')),
  'Sandbox.create(mcp)': async () => {
    option('mcp')
    await create('base', { mcp: { exa: { apiKey: 'none' } } })
  },
}

class Terminal {
  text = ''
  add = (data: Uint8Array): void => {
    this.text += new TextDecoder().decode(data)
  }
  open(options = {}): Promise<any> {
    return sandbox.pty.create({ cols: 111, rows: 30, onData: this.add, ...options })
  }
}

/** The git helpers, and a repository with one commit on `main`. */
async function repository(): Promise<[any, string]> {
  const git = sandbox.git
  if (git === undefined) throw new Absent()
  const path = `${await folder()}/repo`
  await git.init(path, { initialBranch: 'main' })
  await sandbox.files.write(`${path}/a`, 'one\n')
  await git.add(path)
  await git.commit(path, 'first', { authorName: 'A', authorEmail: 'a@example.com' })
  return [git, path]
}

async function judge(name: string, check: () => Promise<void>): Promise<[string, string]> {
  const late = new AbortController()
  try {
    assert(sandbox !== undefined || name === 'Sandbox.create', 'there is no sandbox to try it in')
    const limit = sleep(SECONDS * 1000, undefined, { signal: late.signal }).then(() => {
      throw new Error(`not done after ${SECONDS} s`)
    })
    limit.catch(() => undefined)
    await Promise.race([check(), limit])
  } catch (error: any) {
    if (error instanceof Absent) return ['absent', '']
    const text = String(error?.message ?? error)
    if (/^(Error requesting template build: )?501/.test(text)) return ['refused', text]
    return ['fails', `${error?.name}: ${text}`]
  } finally {
    late.abort()
  }
  return ['works', '']
}

const only = process.argv.slice(2)
for (const [method, check] of Object.entries(checks)) {
  const wanted = method === 'Sandbox.create' || only.some((word) => method.includes(word))
  if (only.length > 0 && !wanted) continue
  const begun = Date.now()
  const [outcome, detail] = await judge(method, check)
  const seconds = (Date.now() - begun) / 1000
  console.log(JSON.stringify({ method, outcome, detail: detail.slice(0, 500), seconds }))
}
await Promise.allSettled(made.map((box) => box.kill()))
process.exit(0)
