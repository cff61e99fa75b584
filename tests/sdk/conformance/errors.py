"""What goes wrong arrives as the documented exception."""

from __future__ import annotations

import time

from sdk.conformance.base import (
    SDK,
    Run,
    check,
    done,
    kind,
    raised,
)


@check("error: wrong API key")
async def _(run: Run) -> None:
    wrong = "e2b_" + "0" * 40
    await raised(SDK.AuthenticationException, lambda: run.Sandbox.create(api_key=wrong))


@check("error: unknown sandbox")
async def _(run: Run) -> None:
    missing = kind("SandboxNotFoundException", "SandboxException")
    sandbox = await run.create()
    await done(sandbox.kill())
    await raised(missing, sandbox.get_info)
    await raised(missing, lambda: sandbox.set_timeout(10))
    await raised(missing, lambda: run.Sandbox.connect(sandbox.sandbox_id))
    await raised(SDK.TimeoutException, lambda: sandbox.commands.run("true"))


@check("error: invalid argument")
async def _(run: Run) -> None:
    await raised(SDK.InvalidArgumentException, lambda: run.sandbox.files.read("/etc"))
    await raised(SDK.InvalidArgumentException, lambda: run.sh("true", cwd="/no/such/place"))


@check("error: killed while a command runs")
async def _(run: Run) -> None:
    sandbox = await run.create()
    handle = await done(sandbox.commands.run("sleep 60", background=True))
    await done(sandbox.kill())
    begun = time.monotonic()
    # Old SDKs pass on what their HTTP library raises.
    error = await raised(Exception, handle.wait)
    assert not isinstance(error, SDK.CommandExitException) and time.monotonic() - begun < 5


@check("error: unknown template")
async def _(run: Run) -> None:
    error = await raised(SDK.SandboxException, lambda: run.Sandbox.create("no-such-template"))
    assert "no-such-template" in str(error)
