"""Calls the public methods of the Python SDK that is installed, whichever 2.x version it is.

`python -m sdk.conformance sync|async [PART_OF_A_NAME...]` works against the node that the
environment points at and prints one line of JSON for each method: `method`, `outcome`, `detail`,
`seconds`. Outcomes: `works`; `absent` where this SDK has no such method or option; `refused` where
the node answers 501; `fails`. It runs in environments that have nothing but the SDK, so nothing
else is imported.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import traceback

# Imported for what they register, in the order of the table.
from sdk.conformance import lifecycle, commands, files, git, errors, later  # isort: skip
from sdk.conformance.base import CHECKS, Absent, Check, Run

__all__ = ["commands", "errors", "files", "git", "later", "lifecycle"]

_SECONDS = 60
"""Longest time for one check."""


async def judge(run: Run, function: Check) -> tuple[str, str]:
    """The outcome of one check, and what there is to say about it."""
    try:
        if run.sandbox is None and function is not CHECKS["Sandbox.create"]:
            raise AssertionError("there is no sandbox to try it in")
        await asyncio.wait_for(function(run), _SECONDS)
    except Absent:
        return "absent", ""
    except Exception as error:  # whatever it is, it is the answer
        if str(error).startswith("501"):
            return "refused", str(error)
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "fails", f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
    return "works", ""


async def main(flavour: str, only: list[str]) -> None:
    """Run all checks (or those whose names contain one of `only`) one after the other."""
    run = Run(flavour)
    try:
        for method, function in CHECKS.items():
            if only and method != "Sandbox.create" and not any(word in method for word in only):
                continue
            begun = time.monotonic()
            outcome, detail = await judge(run, function)
            line = {
                "method": method,
                "outcome": outcome,
                "detail": detail[:500],
                "seconds": round(time.monotonic() - begun, 2),
            }
            print(json.dumps(line), flush=True)
    finally:
        await run.end()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
