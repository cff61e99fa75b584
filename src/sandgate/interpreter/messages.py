"""From Jupyter's messages to the lines that the SDKs read. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

Event = dict[str, Any]
"""One line of the response."""

KEEPALIVE: Event = {"type": "keepalive"}
END: Event = {"type": "end_of_execution"}

_SEPARATORS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_KEYS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "e2b/data": "data",
    "e2b/chart": "chart",
}
"""By MIME type; what is not here is `extra` (wire contract, section 4)."""


def encode(event: Event) -> bytes:
    """One line. Characters at which some clients end lines too are escaped."""
    try:
        text = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(finite(event), ensure_ascii=False, separators=(",", ":"))
    for separator, escape in _SEPARATORS.items():
        text = text.replace(separator, escape)
    # Of halves of characters, JSON's escapes are what is left.
    return text.encode(errors="backslashreplace") + b"\n"


def started(count: int) -> Event:
    """The first line: how many executions the kernel has seen, this one included."""
    return {"type": "number_of_executions", "execution_count": count}


def output(name: str, text: str) -> Event:
    """Something printed. `name` is stdout or stderr."""
    return {"type": name, "text": text, "timestamp": datetime.now(UTC).isoformat()}


def error(name: str, value: str, traceback: str = "") -> Event:
    """The execution failed."""
    return {"type": "error", "name": name, "value": value, "traceback": traceback}


def result(bundle: Mapping[str, Any], *, main: bool) -> Event:
    """One object in all the forms it has. `main`: it is the value of the last expression."""
    event: Event = {"type": "result", "is_main_result": main}
    extra = {}
    for kind, value in bundle.items():
        if value is None:
            continue
        if kind in _KEYS:
            event[_KEYS[kind]] = _unquoted(value) if kind == "text/plain" else value
        else:
            extra[kind] = value
    if extra:
        event["extra"] = extra
    return event


def from_jupyter(message: Mapping[str, Any]) -> Event | None:
    """The line for a message of the IOPub channel; None if clients are not told."""
    kind, content = message["msg_type"], message["content"]
    if kind == "stream":
        return output("stderr" if content["name"] == "stderr" else "stdout", content["text"])
    if kind in ("display_data", "execute_result"):
        return result(content["data"], main=kind == "execute_result")
    if kind == "error":
        return error(content["ename"], content["evalue"], "\n".join(content["traceback"]))
    if kind == "execute_input":
        return started(content["execution_count"])
    return None


def ends(message: Mapping[str, Any]) -> bool:
    """Whether a message says that its execution is over."""
    content = message["content"]
    return bool(message["msg_type"] == "status" and content.get("execution_state") == "idle")


def asks_to_exit(message: Mapping[str, Any]) -> bool:
    """Whether a message is the reply to code that called `exit()` or `quit()`."""
    payload = message["content"].get("payload") or ()
    return any(item.get("source") == "ask_exit" for item in payload)


def failure(reply: Mapping[str, Any]) -> Event | None:
    """The error that a reply tells of; None if it tells of none.

    Errors come as messages of their own, but not all: IPython prints the tracebacks of groups of
    exceptions, and of what it cannot format, to standard error.
    """
    content = reply["content"]
    if content.get("status") != "error":
        return None
    return error(str(content.get("ename", "Error")), str(content.get("evalue", "")))


def _unquoted(text: Any) -> Any:
    """A string's representation without its quotes: E2B shows the string itself."""
    if isinstance(text, str) and len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def finite(value: Any) -> Any:
    """`value` with null in place of every number that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value
