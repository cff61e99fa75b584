-- What HAProxy's own rules cannot say. Loaded once per thread; keeps no state.

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
