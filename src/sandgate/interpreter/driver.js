// Runs inside Node.js: takes requests, one JSON object a line, and tells what became of them.
// Called with Node's `require` and the descriptors that requests come from and events go to.
(function (require, requestsFd, eventsFd) {
  'use strict'
  const fs = require('node:fs')
  const net = require('node:net')
  const path = require('node:path')
  const util = require('node:util')
  const vm = require('node:vm')
  const nodeModule = require('node:module')
  const acorn = require('internal/deps/acorn/acorn/dist/acorn')
  const { internalBinding } = require('internal/test/binding')
  // What `breakOnSigint` starts and stops with each script. Between two scripts a signal would end
  // the process, and one that meets the stop would interrupt a later script: so it never stops.
  const watchdog = internalBinding('contextify')
  watchdog.startSigintWatchdog()

  const DRIVER = 'sandgate:driver'
  const DISPLAY = Symbol.for('Jupyter.display')
  const POLL_MS = 20
  const { setInterval, clearInterval } = globalThis // code may replace them
  const write = fs.writeSync
  let count = 0
  let source = ''

  function tell(event) {
    const data = Buffer.from(JSON.stringify(event) + '\n')
    for (let at = 0; at < data.length; ) at += write(eventsFd, data, at)
  }

  function redirect(stream, type) {
    const decoder = new (require('node:string_decoder').StringDecoder)('utf8')
    stream.write = (chunk, encoding, callback) => {
      if (typeof encoding === 'function') callback = encoding
      const text = typeof chunk === 'string' ? chunk : decoder.write(Buffer.from(chunk))
      if (text) tell({ type, text, timestamp: new Date().toISOString() })
      if (typeof callback === 'function') process.nextTick(callback)
      return true
    }
  }
  redirect(process.stdout, 'stdout')
  redirect(process.stderr, 'stderr')

  const KEYS = {
    'text/plain': 'text', 'text/html': 'html', 'text/markdown': 'markdown',
    'image/svg+xml': 'svg', 'image/png': 'png', 'image/jpeg': 'jpeg',
    'application/pdf': 'pdf', 'text/latex': 'latex', 'application/json': 'json',
    'application/javascript': 'javascript', 'e2b/data': 'data', 'e2b/chart': 'chart'
  }

  function tellResult(bundle, main) {
    const event = { type: 'result', is_main_result: main }
    for (const [kind, value] of Object.entries(bundle)) {
      if (KEYS[kind]) event[KEYS[kind]] = value
      else (event.extra ??= {})[kind] = value
    }
    tell(event)
  }

  async function bundleOf(value) {
    if (value !== null && typeof value === 'object' && typeof value[DISPLAY] === 'function') {
      return await value[DISPLAY]()
    }
    return { 'text/plain': typeof value === 'string' ? value : util.inspect(value) }
  }

  // Shows a value, or with { raw: true } an object of MIME types.
  async function display(value, options) {
    tellResult(options && options.raw ? value : await bundleOf(value), false)
  }

  // Top-level names become properties of the global object, so that they outlive the execution
  // and may be declared again; imports become calls; the last expression becomes the result.
  function transform(code) {
    if (/^\s*\{[^]*\}\s*$/.test(code)) {
      // Rather an object than a block, as in Node's own console.
      try {
        acorn.parseExpressionAt(code, 0, { ecmaVersion: 'latest' })
        new vm.Script(`(${code}\n)`)
        code = `(${code}\n)`
      } catch {}
    }
    const options = {
      ecmaVersion: 'latest', sourceType: 'module', allowAwaitOutsideFunction: true,
      allowReturnOutsideFunction: false, allowHashBang: true
    }
    let tree
    try {
      tree = acorn.parse(code, options)
    } catch (error) {
      // Sloppy code that is no module, such as `with` or octal numbers.
      try {
        tree = acorn.parse(code, { ...options, sourceType: 'script' })
      } catch {
        throw error
      }
    }
    const edits = []
    const names = new Set()
    const edit = (start, end, text) => edits.push({ start, end, text })
    const slice = (node) => code.slice(node.start, node.end)
    const bind = (pattern) => {
      if (pattern === null) return
      if (pattern.type === 'Identifier') names.add(pattern.name)
      else if (pattern.type === 'ObjectPattern') {
        for (const one of pattern.properties) bind(one.value ?? one.argument)
      } else if (pattern.type === 'ArrayPattern') pattern.elements.forEach(bind)
      else if (pattern.type === 'AssignmentPattern') bind(pattern.left)
      else if (pattern.type === 'RestElement') bind(pattern.argument)
    }
    const declare = (node) => {
      if (node.type === 'VariableDeclaration') {
        node.declarations.forEach((one) => bind(one.id))
        const parts = node.declarations.map((one) => one.init
          ? `(${slice(one.id)} = (\n${slice(one.init)}\n))`
          : node.kind === 'var' ? 'void 0' : `(${slice(one.id)} = undefined)`)
        edit(node.start, node.end, `void (${parts.join(', ')});`)
      } else {
        names.add(node.id.name)
        edit(node.start, node.start, `${node.id.name} = `)
        edit(node.end, node.end, ';')
      }
    }
    const hoisted = []
    let awaits = containsAwait(tree)
    tree.body.forEach((node, index) => {
      const last = index === tree.body.length - 1
      switch (node.type) {
        case 'ImportDeclaration': {
          awaits = true
          const parts = []
          for (const one of node.specifiers) {
            names.add(one.local.name)
            const from = one.type === 'ImportNamespaceSpecifier' ? '$'
              : one.type === 'ImportDefaultSpecifier' ? '$.default'
                : `$[${JSON.stringify(one.imported.name ?? one.imported.value)}]`
            parts.push(`${one.local.name} = ${from};`)
          }
          const attributes = (node.attributes ?? []).map(
            (one) => `${slice(one.key)}: ${slice(one.value)}`)
          const second = attributes.length ? `, { with: { ${attributes.join(', ')} } }` : ''
          hoisted.push(`{ const $ = await import(${slice(node.source)}${second}); ${parts.join(' ')} }`)
          edit(node.start, node.end, '')
          break
        }
        case 'ExportNamedDeclaration':
          if (node.declaration) {
            edit(node.start, node.declaration.start, '')
            declare(node.declaration)
          } else edit(node.start, node.end, '')
          break
        case 'ExportDefaultDeclaration':
          edit(node.start, node.declaration.start, 'globalThis.default_export = ')
          break
        case 'FunctionDeclaration':
          names.add(node.id.name)
          hoisted.push(`${node.id.name} = ${slice(node)};`)
          edit(node.start, node.end, '')
          break
        case 'VariableDeclaration':
        case 'ClassDeclaration':
          declare(node)
          break
        case 'ExpressionStatement':
          if (last) {
            const { start, end } = node.expression
            edit(node.start, start, '__sandgate_result = (')
            edit(end, node.end, ');')
          }
      }
    })
    let body = code
    edits.sort((a, b) => b.start - a.start || b.end - a.end)
    for (const { start, end, text } of edits) body = body.slice(0, start) + text + body.slice(end)
    return { body: `${hoisted.join(' ')}${body}`, names, awaits }
  }

  function containsAwait(node) {
    if (Array.isArray(node)) return node.some(containsAwait)
    if (node === null || typeof node !== 'object' || typeof node.type !== 'string') return false
    if (node.type === 'AwaitExpression') return true
    if (node.type === 'ForOfStatement' && node.await) return true
    if (/Function|Method|PropertyDefinition/.test(node.type)) return false
    return Object.values(node).some((child) => typeof child === 'object' && containsAwait(child))
  }

  // The process has got no SIGINT any more that it has not acted upon.
  function forgetInterrupt() {
    watchdog.startSigintWatchdog()
    watchdog.stopSigintWatchdog()
  }

  async function unlessInterrupted(running) {
    let timer
    const interrupted = new Promise((_, reject) => {
      timer = setInterval(() => {
        if (watchdog.watchdogHasPendingSigint()) {
          reject(Object.assign(new Error('the execution was interrupted'), { name: 'Interrupted' }))
        }
      }, POLL_MS)
    })
    try {
      await Promise.race([running, interrupted])
    } finally {
      clearInterval(timer)
    }
  }

  async function run(code, typescript) {
    const filename = path.join(process.cwd(), `cell-${count}.${typescript ? 'ts' : 'js'}`)
    if (typescript) code = nodeModule.stripTypeScriptTypes(code, { mode: 'transform' })
    source = code
    const { body, names, awaits } = transform(code)
    for (const name of names) if (!(name in globalThis)) globalThis[name] = undefined
    const options = {
      filename,
      breakOnSigint: true,
      displayErrors: false,
      importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER
    }
    globalThis.__sandgate_result = undefined
    globalThis.require = nodeModule.createRequire(filename)
    const script = awaits ? `(async () => { ${body}\n})()` : `{ ${body}\n}`
    // Not strict mode's: a sloppy script may also be one that is no module.
    const running = vm.runInThisContext(script, options)
    if (awaits) await unlessInterrupted(running)
    const value = globalThis.__sandgate_result
    globalThis.__sandgate_result = undefined
    return value
  }

  function tellError(error) {
    if (error instanceof Error || (error && typeof error.stack === 'string')) {
      const name = String(error.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED'
        ? 'Interrupted' : error.name ?? 'Error')
      if (error.loc) {
        // Of the parser: its own calls are of no interest, the place is.
        const line = source.split('\n')[error.loc.line - 1]
        const traceback = `${line}\n${' '.repeat(error.loc.column)}^\n${name}: ${error.message}`
        tell({ type: 'error', name, value: error.message, traceback })
        return
      }
      const lines = String(error.stack).split('\n')
      const end = lines.findIndex((line) => line.includes(DRIVER) || line.includes('node:vm'))
      const traceback = (end > 0 ? lines.slice(0, end) : lines).join('\n')
      tell({ type: 'error', name, value: String(error.message), traceback })
    } else {
      const value = util.inspect(error)
      tell({ type: 'error', name: 'UncaughtException', value, traceback: `Uncaught ${value}` })
    }
  }

  async function serve({ code, env, lasting, typescript }) {
    Object.assign(process.env, lasting)
    const before = Object.keys(env).map((name) => [name, process.env[name]])
    Object.assign(process.env, env)
    count += 1
    forgetInterrupt()
    tell({ type: 'number_of_executions', execution_count: count })
    try {
      const value = await run(code, typescript)
      if (value !== undefined) tellResult(await bundleOf(value), true)
    } catch (error) {
      tellError(error)
    }
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
    }
    tell({ type: 'done' })
  }

  process.on('uncaughtException', tellError)
  process.on('unhandledRejection', tellError)
  globalThis.display = display

  const requests = new net.Socket({ fd: requestsFd, readable: true, writable: false })
  let pending = []
  let busy = Promise.resolve()
  requests.on('data', (chunk) => {
    let at
    while ((at = chunk.indexOf(10)) >= 0) {
      const line = Buffer.concat([...pending, chunk.subarray(0, at)]).toString()
      pending = []
      chunk = chunk.subarray(at + 1)
      busy = busy.then(() => serve(JSON.parse(line)))
    }
    pending.push(chunk)
  })
  requests.on('end', () => process.exit(0))
})
