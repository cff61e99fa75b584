"""Sandboxes, started for real: what they are, what they cannot do, and that nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
import uuid
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from runtime.conftest import LauncherProcess, Start
from sandgate.runtime.client import LauncherClient, LauncherError
from sandgate.runtime.protocol import write_attachment


async def test_a_command_runs_in_a_new_sandbox(start: Start) -> None:
    sandbox = await start("ihello")
    assert sandbox.run("echo hello; hostname", user="user") == (0, "hello\nihello\n")


async def test_the_address_is_told_before_a_sandbox_is_up(start: Start) -> None:
    told: list[IPv4Address] = []
    sandbox = await start("iaddress", on_address=told.append)
    assert told == [sandbox.launched.address]


_IMPATIENT = """
import runpy, time
from sandgate.runtime import creation

def work(self, real=creation.Creation.work):
    time.sleep(0.3 if self._book.claims else 0)
    real(self)

creation._START_TIMEOUT_S, creation.Creation.work = 0.05, work
runpy.run_module("sandgate.runtime", run_name="__main__", alter_sys=True)
"""
"""A launcher that is busy for longer than a start may take."""


async def test_a_sandbox_that_is_up_when_it_was_given_up_is_ended(
    launcher: LauncherProcess, client: LauncherClient, start: Start
) -> None:
    launcher.stop()
    launcher.program = ("-c", _IMPATIENT)
    launcher.start()
    told: list[IPv4Address] = []
    while not told:  # before that, no sandbox was prepared
        with pytest.raises(LauncherError, match="did not start within"):
            await start("ilate", on_address=told.append)
        await asyncio.sleep(0.1)
    await client.kill("ilate")
    assert await client.running() == []
    assert launcher.process is not None and launcher.process.poll() is None


async def test_every_start_is_a_boot_of_its_own(start: Start) -> None:
    shown = Path("/proc/sys/kernel/random/boot_id")
    found = {shown.read_text()}
    for name in ("ifirst", "isecond"):
        sandbox = await start(name)
        text = sandbox.run(f"cat {shown}")[1]
        found.add(text)
        assert str(uuid.UUID(text.strip())) + "\n" == text
        assert sandbox.run(f"echo x > {shown} || cat {shown}")[1].endswith(text)
    assert len(found) == 3


async def test_sudo_works_without_a_password(start: Start) -> None:
    sandbox = await start()
    assert sandbox.run("sudo -n id -u", user="user") == (0, "0\n")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def process_of(launcher: LauncherProcess, module: str) -> int:
    """The process below the launcher that runs a module of the runtime package."""
    assert launcher.process is not None
    for _ in range(200):
        below = children(launcher.process.pid)
        for pid in [*below, *(pid for child in below for pid in children(child))]:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if f"sandgate.runtime.{module}" in words:
                    return pid
        await asyncio.sleep(0.05)
    raise TimeoutError(f"there is no {module}")


async def test_a_cell_that_dies_in_the_pool_is_replaced(
    start: Start, launcher: LauncherProcess
) -> None:
    await start("iwarm")
    await asyncio.sleep(0.5)
    for pid in children(await process_of(launcher, "mould")):
        os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.5)
    assert (await start("ilater")).run("echo fine") == (0, "fine\n")


@pytest.mark.parametrize("module", ["mould", "assembly"])
async def test_the_processes_that_make_cells_may_die(
    start: Start, launcher: LauncherProcess, module: str
) -> None:
    before = await start("ibefore")
    for number in range(3):
        await asyncio.sleep(0.2)
        os.kill(await process_of(launcher, module), signal.SIGKILL)
        for name in ("a", "b"):  # one from the pool, and one that has to be made
            sandbox = await start(f"iafter{number}{name}")
            assert sandbox.run("echo fine") == (0, "fine\n")
    assert before.run("echo still here") == (0, "still here\n")


async def test_whoever_makes_cells_may_die_at_any_moment(
    start: Start, launcher: LauncherProcess, client: LauncherClient
) -> None:
    """While twelve at once wait for theirs; what is half made must not stay either."""
    wanted = asyncio.gather(*(start(f"imany{number}") for number in range(12)))
    for delay in (0.0, 0.01, 0.02):
        await asyncio.sleep(0.3 + delay)
        for module in ("assembly", "mould"):
            if not wanted.done():
                os.kill(await process_of(launcher, module), signal.SIGKILL)
    sandboxes = await wanted
    assert len({sandbox.launched.slot for sandbox in sandboxes}) == 12
    for sandbox in sandboxes:
        assert sandbox.run("echo fine") == (0, "fine\n")
    for number in range(12):
        await client.kill(f"imany{number}")
    assert await client.running() == []


async def test_who_is_ended_while_it_waits_is_refused(start: Start, client: LauncherClient) -> None:
    wanted = [asyncio.create_task(start(f"iwaits{number}")) for number in range(6)]
    await asyncio.sleep(0)  # each has sent its request
    await client.kill("iwaits5")
    with pytest.raises(LauncherError, match="ended"):
        await wanted[5]
    for task in wanted[:5]:
        assert (await task).run("echo fine") == (0, "fine\n")
    assert len(await client.running()) == 5
    assert (await start("iwaits5")).run("echo fine") == (0, "fine\n")


async def test_writes_stay_in_the_sandbox(start: Start) -> None:
    first = await start("ifirst")
    second = await start("isecond")
    first.run("echo changed > /etc/os-release; rm /bin/ls; echo x > /new")
    assert "Debian" in second.run("cat /etc/os-release; ls /new")[1]
    third = await start("ithird")
    assert "Debian" in third.run("cat /etc/os-release")[1]


async def test_killing_leaves_nothing(
    start: Start, client: LauncherClient, launcher: LauncherProcess
) -> None:
    sandbox = await start("igone")
    sandbox.run("nohup sleep 1000 >/dev/null 2>&1 & nohup setsid sleep 1000 >/dev/null 2>&1 &")
    pids = Path(f"/proc/{sandbox.launched.pid}/task/{sandbox.launched.pid}/children")
    children = [int(pid) for pid in pids.read_text().split()]
    assert children
    await client.kill("igone")
    for pid in (sandbox.launched.pid, *children):
        assert not Path(f"/proc/{pid}").exists()
    assert await client.running() == []
    slot = sandbox.launched.slot
    group = f"sandgate/{launcher.settings.node_id}/s{slot}"
    assert not [*Path("/sys/fs/cgroup").glob(group), *Path("/sys/fs/cgroup").glob(f"*/{group}")]
    assert not (launcher.settings.data_dir / "cells" / f"{slot}.json").exists()
    await client.kill("igone")  # again, harmlessly


async def test_a_sandbox_that_ends_by_itself_is_reported(
    start: Start, client: LauncherClient
) -> None:
    sandbox = await start("iends")
    os.kill(sandbox.launched.pid, signal.SIGKILL)
    assert await asyncio.wait_for(client.exits.get(), 5) == "iends"  # type: ignore[attr-defined]
    assert await client.running() == []


@pytest.mark.parametrize(
    ("request_", "attachment"),
    [
        (b'{"id": 1e999, "op": "running"}', None),
        (b"[" * 100_000, None),
        (b'{"id": 1, "op": "set_policy", "sandbox_id": "i"}', b'{"a":' + b"[" * 200_000),
        (
            b'{"id": 1, "op": "set_policy", "sandbox_id": "i"}',
            b'{"allow": [], "deny": [], "names": [1]}',
        ),
    ],
)
async def test_no_request_ends_the_launcher(
    client: LauncherClient, launcher: LauncherProcess, request_: bytes, attachment: bytes | None
) -> None:
    fds = [] if attachment is None else [write_attachment(attachment)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(str(launcher.socket_path))
        socket.send_fds(connection, [request_], fds)
        assert b"malformed request" in connection.recv(65536)
    for fd in fds:
        os.close(fd)
    assert await client.running() == []
    assert launcher.process is not None and launcher.process.poll() is None


async def test_connections_are_bounded(client: LauncherClient, launcher: LauncherProcess) -> None:
    with contextlib.ExitStack() as opened:
        for _ in range(100):
            connection = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            connection.connect(str(launcher.socket_path))
        connection.settimeout(10)
        assert connection.recv(1) == b""
        assert await client.running() == []


async def test_ids_are_not_given_twice(start: Start) -> None:
    await start("itwice")
    with pytest.raises(LauncherError, match="itwice exists"):
        await start("itwice")


async def test_an_unknown_template_is_named(start: Start) -> None:
    with pytest.raises(LauncherError, match="template nosuch is not built"):
        await start(template="nosuch")
    assert (await start("iafter")).run("echo fine") == (0, "fine\n")


async def test_a_restarted_launcher_adopts_what_runs(
    start: Start, client: LauncherClient, launcher: LauncherProcess
) -> None:
    sandbox = await start("istays")
    sandbox.run("echo kept > /tmp/file; sleep 1000 > /dev/null 2>&1 &")
    launcher.stop(signal.SIGKILL)
    assert sandbox.run("cat /tmp/file") == (0, "kept\n")
    launcher.start()
    assert await client.running() == [sandbox.launched]
    assert sandbox.run("cat /tmp/file; pgrep -c sleep") == (0, "kept\n1\n")
    fresh = await start("ifresh")
    assert fresh.launched.slot != sandbox.launched.slot
    await client.kill("istays")
    status = Path(f"/proc/{sandbox.launched.pid}/status")
    # It was nobody's child any more, so it may wait to be reaped by the machine's init.
    assert not status.exists() or "State:\tZ" in status.read_text()


async def test_creating_takes_milliseconds(start: Start, client: LauncherClient) -> None:
    await start("iwarm")
    await asyncio.sleep(0.5)
    times = []
    for number in range(5):
        begun = time.perf_counter()
        await start(f"itimed{number}")
        times.append(time.perf_counter() - begun)
        await asyncio.sleep(0.2)  # the pool refills
    assert min(times) < 0.05, times


async def test_templates_that_are_just_being_built_anew_do_not_harm_the_launcher(
    start: Start, launcher: LauncherProcess
) -> None:
    """A template of which the one below is gone already cannot be used, and that is all."""
    built = launcher.settings.data_dir / "templates"
    whole = built.readlink()
    half = launcher.settings.data_dir / "half"
    half.mkdir()
    for template in whole.glob("[!.]*/"):
        (half / template.name).mkdir()
        text = (template / "manifest.json").read_text()
        if template.name == "base":
            text = text.replace(json.loads(text)["build_id"], "another")
        (half / template.name / "manifest.json").write_text(text)
        (half / template.name / "rootfs").symlink_to(template / "rootfs")
    sandbox = await start("ibefore")
    built.unlink()
    built.symlink_to(half)
    with pytest.raises(LauncherError, match="code-interpreter-v1 is not built on this node"):
        await start("ihalf", template="code-interpreter-v1")
    for number in range(4):  # the first ones are taken from the pool
        assert (await start(f"iduring{number}")).run("echo here") == (0, "here\n")
    assert launcher.process is not None and launcher.process.poll() is None
    assert sandbox.run("echo still here") == (0, "still here\n")
    built.unlink()
    built.symlink_to(whole)
    assert (await start("iafter")).run("echo again") == (0, "again\n")
