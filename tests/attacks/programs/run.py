"""`python3 -m programs.run REQUEST`: runs one attack and then the control; both JSON."""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback


def main() -> None:
    """Attack, then do what is allowed."""
    request = json.loads(sys.argv[1])
    module, _, function = request["program"].partition(".")
    program = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    started = time.monotonic()
    said = ""
    reached = False
    try:
        reached = bool(program(**request["arguments"]))
    except OSError as refusal:
        said = "".join(traceback.format_exception_only(refusal)).strip()
    seconds = time.monotonic() - started
    control = None
    if request["control"]:
        kind, *arguments = request["control"]
        check = getattr(importlib.import_module(f"{__package__}.control"), kind)
        try:
            control = bool(check(*arguments))
        except OSError as error:
            said += f"; the control failed: {error!r}"
            control = False
    print(json.dumps({"reached": reached, "said": said, "seconds": seconds, "control": control}))


if __name__ == "__main__":
    main()
