-- What HAProxy's own rules cannot say. Loaded once per thread; keeps no state.
-- The lines before this file set ROUTES_MAP, FILLED, ASLEEP and REFUSALS (see config.py).

local ESCAPES = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["'"] = "&#39;" }

-- Text from a client, made harmless inside HTML. Bytes that are no printable ASCII become '?'.
core.register_converters("html", function(text)
    return (text:gsub("[^ -~]", "?"):gsub("[&<>\"']", ESCAPES))
end)

-- Puts the port wherever the mask (txn.mask) asks for it.
core.register_action("mask_host", { "http-req" }, function(txn)
    local mask = txn:get_var("txn.mask")
    local port = tostring(txn:get_var("txn.port"))
    txn:set_var("txn.mask", (mask:gsub("%${PORT}", port)))
end)

local routes = Map.new(ROUTES_MAP, Map._str)
local LONGEST_START = 10000 -- milliseconds

-- Waits until control has pushed the routes to an HAProxy that has just been started.
core.register_action("await_routes", { "http-req" }, function(txn)
    local waited = 0
    while routes:lookup(FILLED) == nil and waited < LONGEST_START do
        core.msleep(10)
        waited = waited + 10
    end
end)

-- Sets txn.tls if the port is among those in txn.https (",443,8443,").
core.register_action("speaks_https", { "http-req" }, function(txn)
    local port = tostring(txn:get_var("txn.port"))
    if txn:get_var("txn.https"):find("," .. port .. ",", 1, true) then
        txn:set_var("txn.tls", true)
    end
end)

local LONGEST_TARGET = 8192
local PATIENCE = 60 -- seconds

-- Asks control to resume the sandbox that the request is for, and waits until it runs. Sets
-- txn.woken, and txn.address if that is "running" (see sandgate.node.doorbell).
core.register_action("wake", { "http-req" }, function(txn, path)
    local target = txn.sf:pathq()
    local socket = core.tcp()
    socket:settimeout(PATIENCE)
    local answer
    if #target <= LONGEST_TARGET and socket:connect(path) then
        local question = {
            txn:get_var("txn.id"),
            tostring(txn:get_var("txn.port")),
            txn.sf:method(),
            target,
            txn.sf:req_fhdr("x-access-token") or "",
        }
        if socket:send(table.concat(question, "\n") .. "\n") then
            answer = socket:receive("*l")
        end
    end
    socket:close()
    local woken, address = (answer or "failed"):match("^(%l+) ?([%d.]*)$")
    txn:set_var("txn.woken", woken or "failed")
    if woken == "running" then
        txn:set_var("txn.address", address)
    end
end, 1)

-- The JSON of a refusal.
local function said(refusal, id, port)
    local shown = refusal.with_port and string.format('"port":%d,', port) or ""
    return string.format(
        '{"sandboxId":"%s","message":"%s",%s"code":%d}', id, refusal.message, shown, refusal.status
    )
end

-- The JSON of a failure of the server in the sandbox, or that the sandbox is gone.
core.register_fetches("failure", function(txn, name)
    local id = txn:get_var("txn.id")
    local route = routes:lookup(id)
    local refusal = REFUSALS[name]
    if refusal.status == 502 and (route == nil or route:match("^[^|]*") == ASLEEP) then
        refusal = REFUSALS["not-found"]
    end
    return said(refusal, id, txn:get_var("txn.port"))
end)

local LONGEST_BODY = 32 * 1024 * 1024
local PIECE = 65536

-- Reads the body of a request, up to a limit, and refuses the request as txn.refusal says.
core.register_service("refuse", "http", function(applet)
    local left = LONGEST_BODY
    repeat
        local piece = applet:receive(PIECE) or ""
        left = left - #piece
    until #piece < PIECE or left <= 0
    local refusal = REFUSALS[applet:get_var("txn.refusal")]
    local body = said(refusal, applet:get_var("txn.id"), applet:get_var("txn.port"))
    applet:set_status(refusal.status)
    applet:add_header("content-type", "application/json; charset=utf-8")
    applet:add_header("cache-control", "no-store")
    applet:add_header("content-length", tostring(#body))
    applet:start_response()
    applet:send(body)
end)
