"""Commands and terminals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sdk.conformance.base import (
    SDK,
    Run,
    check,
    done,
    member,
    pty_size,
    raised,
    until,
)


@check("commands.run")
async def _(run: Run) -> None:
    seen: list[str] = []
    command = 'echo "$A $(whoami) $(pwd)"; echo bad >&2'
    result = await run.sh(command, envs={"A": "a"}, user="root", cwd="/tmp", on_stdout=seen.append)
    assert (result.stdout, result.stderr, result.exit_code) == ("a root /tmp\n", "bad\n", 0)
    assert "".join(seen) == "a root /tmp\n"


@check("commands.run(exit code)")
async def _(run: Run) -> None:
    failed: Any = await raised(SDK.CommandExitException, lambda: run.sh("echo no; exit 7"))
    assert (failed.exit_code, failed.stdout) == (7, "no\n")


@check("commands.run(timeout)")
async def _(run: Run) -> None:
    error = await raised(Exception, lambda: run.sh("sleep 30", timeout=1))
    # Old SDKs also wait no longer than that for the next byte, and sometimes win that race.
    assert isinstance(error, SDK.TimeoutException) or type(error).__name__ == "ReadTimeout", error


@check("commands.run(large output)")
async def _(run: Run) -> None:
    result = await run.sh("head -c 3000000 /dev/zero | tr '\\0' x")
    assert result.stdout == "x" * 3_000_000


@check("commands.list")
async def _(run: Run) -> None:
    handle = await run.background("sleep 71")
    try:
        assert handle.pid in [item.pid for item in await done(run.sandbox.commands.list())]
    finally:
        await done(handle.kill())


@check("commands.kill")
async def _(run: Run) -> None:
    handle = await run.background("sleep 72")
    assert await done(run.sandbox.commands.kill(handle.pid)) is True
    await raised(SDK.CommandExitException, handle.wait)
    assert await done(run.sandbox.commands.kill(999_999)) is False


@check("commands.connect")
async def _(run: Run) -> None:
    handle = await run.background("read line; echo $line", stdin=True)
    again = await done(run.sandbox.commands.connect(handle.pid))
    await done(run.sandbox.commands.send_stdin(handle.pid, "again\n"))
    assert (await done(again.wait())).stdout == "again\n"


@check("commands.send_stdin")
async def _(run: Run) -> None:
    handle = await run.background("read line; echo got $line", stdin=True)
    await done(run.sandbox.commands.send_stdin(handle.pid, "a\n"))
    assert (await done(handle.wait())).stdout == "got a\n"


@check("commands.close_stdin")
async def _(run: Run) -> None:
    close = member(run.sandbox.commands, "close_stdin")
    handle = await run.background("cat", stdin=True)
    await done(run.sandbox.commands.send_stdin(handle.pid, "all"))
    await done(close(handle.pid))
    assert (await done(handle.wait())).stdout == "all"


@check("commands.stream_input")
async def _(run: Run) -> None:
    stream = member(run.sandbox.commands, "stream_input")
    handle = await run.background("head -c 6", stdin=True)
    await _send(run, stream, handle.pid, ["abc", "def"])
    assert (await done(handle.wait())).stdout == "abcdef"


async def _send(run: Run, stream: Any, pid: int, items: Iterable[Any]) -> None:
    if not run.is_async:
        stream(pid, iter(items))
        return
    async with stream(pid) as handle:
        for item in items:
            await handle.send(item)


@check("CommandHandle.disconnect")
async def _(run: Run) -> None:
    handle = await run.background("sleep 1; echo late > late.txt")
    await done(handle.disconnect())
    await until(lambda: run.sandbox.files.exists("late.txt"))


@check("CommandHandle.kill")
async def _(run: Run) -> None:
    handle = await run.background("sleep 73")
    assert await done(handle.kill()) is True


@check("pty.create")
async def _(run: Run) -> None:
    output: list[bytes] = []
    handle = await run.terminal(output, envs={"B": "bee"})
    await done(run.sandbox.pty.send_stdin(handle.pid, b"echo $B $(tput cols); exit\n"))
    assert (await run.read_terminal(handle, output)).exit_code == 0
    assert b"bee 111" in b"".join(output)


@check("pty.resize")
async def _(run: Run) -> None:
    output: list[bytes] = []
    handle = await run.terminal(output)
    await done(run.sandbox.pty.resize(handle.pid, pty_size(40, 123)))
    await done(run.sandbox.pty.send_stdin(handle.pid, b"echo now $(tput cols); exit\n"))
    await run.read_terminal(handle, output)
    assert b"now 123" in b"".join(output)


@check("pty.kill")
async def _(run: Run) -> None:
    handle = await run.terminal([])
    assert await done(run.sandbox.pty.kill(handle.pid)) is True
    assert await done(run.sandbox.pty.kill(999_999)) is False


@check("pty.connect")
async def _(run: Run) -> None:
    connect = member(run.sandbox.pty, "connect")
    output: list[bytes] = []
    handle = await run.terminal([])
    options = {"on_data": output.append} if run.is_async else {}
    again = await done(connect(handle.pid, **options))
    await done(run.sandbox.pty.send_stdin(handle.pid, b"echo he''re; exit\n"))
    await run.read_terminal(again, output)
    assert b"here" in b"".join(output)


@check("pty.stream_input")
async def _(run: Run) -> None:
    stream = member(run.sandbox.pty, "stream_input")
    output: list[bytes] = []
    handle = await run.terminal(output)
    await _send(run, stream, handle.pid, [b"echo stre", b"''am\n", b"exit\n"])
    await run.read_terminal(handle, output)
    assert b"stream" in b"".join(output)
