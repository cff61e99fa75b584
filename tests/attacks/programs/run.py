"""`python3 -m programs.run`: runs one attack, and then the control, for each line of input.

A request and its result are one line of JSON each. Every attack has a process of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from typing import Any


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Attack, then do what is allowed."""
    started = time.monotonic()
    said = ""
    reached = False
    try:
        reached = bool(_call(request["program"], **request["arguments"]))
    except OSError as refusal:
        said = "".join(traceback.format_exception_only(refusal)).strip()
    except Exception:  # a mistake in the attack itself: the test shows it
        return {"failed": traceback.format_exc()}
    seconds = time.monotonic() - started
    control = None
    if request["control"]:
        kind, *arguments = request["control"]
        try:
            control = bool(_call(f"control.{kind}", *arguments))
        except OSError as error:
            said += f"; the control failed: {error!r}"
            control = False
    return {"reached": reached, "said": said, "seconds": seconds, "control": control}


def _call(name: str, /, *arguments: object, **named: object) -> object:
    module, _, function = name.partition(".")
    program = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    result: object = program(*arguments, **named)
    return result


def main() -> None:
    """Serve until the input ends."""
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if not child:
            print(json.dumps(run(json.loads(line))), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
