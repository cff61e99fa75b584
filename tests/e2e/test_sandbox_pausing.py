"""Pausing and resuming through the SDK: everything inside goes on as if nothing had been."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from e2b import (
    Sandbox,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)

from internet.node import Node

Make = Callable[..., Sandbox]
_BOOT_ID = "/proc/sys/kernel/random/boot_id"

_SOCKETS = """
import socket, time
listener = socket.create_server(("127.0.0.1", 7000))
one = socket.create_connection(("127.0.0.1", 7000)); other, _ = listener.accept()
number = 0
while True:
    number += 1
    one.sendall(b"x" * 8)
    assert other.recv(8) == b"x" * 8
    open("/tmp/number", "w").write(str(number))
    time.sleep(0.02)
"""


def number(sandbox: Sandbox) -> int:
    while not (text := sandbox.files.read("/tmp/number")):
        time.sleep(0.01)
    return int(text)


def states(*wanted: SandboxState) -> dict[str, str]:
    found: dict[str, str] = {}
    pages = Sandbox.list(query=SandboxQuery(state=list(wanted)))
    while pages.has_next:
        found |= {item.sandbox_id: item.state.value for item in pages.next_items()}
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_memory_processes_and_sockets_stay(sandboxes: Make) -> None:
    sandbox = sandboxes(metadata={"a": "b"}, envs={"KEPT": "yes"})
    sandbox.files.write("/tmp/work.py", _SOCKETS)
    handle = sandbox.commands.run("python3 /tmp/work.py", background=True)
    wait_for(lambda: sandbox.files.exists("/tmp/number") and number(sandbox) > 3)
    boot = sandbox.files.read(_BOOT_ID)
    assert sandbox.pause() is True
    assert not sandbox.is_running()
    assert sandbox.pause() is False
    time.sleep(0.5)
    same = sandbox.connect()
    assert same.sandbox_id == sandbox.sandbox_id
    assert sandbox.is_running()
    before = number(sandbox)
    assert any(process.pid == handle.pid for process in sandbox.commands.list())
    wait_for(lambda: number(sandbox) > before)
    assert sandbox.commands.run("echo $KEPT").stdout == "yes\n"
    assert sandbox.files.read(_BOOT_ID) == boot
    assert Sandbox.connect(sandbox.sandbox_id).files.read("/tmp/work.py") == _SOCKETS
    again = same.commands.connect(handle.pid)
    assert again.kill()


def test_a_paused_sandbox_is_listed_and_described(sandboxes: Make) -> None:
    sandbox, other = sandboxes(), sandboxes()
    sandbox.pause()
    paused, running = SandboxState.PAUSED, SandboxState.RUNNING
    assert states(paused) == {sandbox.sandbox_id: "paused"}
    assert sandbox.sandbox_id not in states(running)
    assert states(paused, running)[other.sandbox_id] == "running"
    info = sandbox.get_info()
    assert info.state is paused
    with pytest.raises(SandboxNotFoundException):
        sandbox.set_timeout(100)
    assert sandbox.kill() is True
    assert sandbox.kill() is False
    assert states(paused) == {}


def test_it_holds_no_processor(sandboxes: Make, node: Node) -> None:
    sandbox = sandboxes()
    sandbox.commands.run("while true; do : spins; done", background=True)

    def spinning() -> list[Path]:
        found = (Path(f"/proc/{pid}") for pid in node.processes())
        return [path for path in found if b": spins" in (path / "cmdline").read_bytes()]

    wait_for(lambda: bool(spinning()))
    (process,) = spinning()

    def ticks() -> int:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    wait_for(lambda: ticks() > 0)
    sandbox.pause()
    used = ticks()
    time.sleep(0.5)
    assert ticks() == used
    sandbox.connect()
    wait_for(lambda: ticks() > used)


@pytest.mark.parametrize("way", ["pause", "kill"])
def test_open_streams_end_at_once_with_the_right_exception(sandboxes: Make, way: str) -> None:
    sandbox = sandboxes()
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            sandbox.commands.run("sleep 60", timeout=0)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.5)
    begun = time.monotonic()
    getattr(sandbox, way)()
    thread.join(10)
    assert time.monotonic() - begun < 3
    (error,) = raised
    assert isinstance(error, TimeoutException), repr(error)
    assert "The sandbox was not found" in str(error) or "end of life" in str(error), str(error)


def test_at_its_time_it_is_paused(sandboxes: Make) -> None:
    sandbox = sandboxes(timeout=2, lifecycle={"on_timeout": "pause"})
    sandbox.files.write("/home/user/kept", "1")
    wait_for(lambda: states(SandboxState.PAUSED) == {sandbox.sandbox_id: "paused"})
    assert not sandbox.is_running()
    sandbox.connect(timeout=60)
    assert sandbox.files.read("/home/user/kept") == "1"
    assert (sandbox.get_info().end_at.timestamp() - time.time()) > 50


def test_the_policy_holds_after_resuming(sandboxes: Make) -> None:
    sandbox = sandboxes(network={"deny_out": ["0.0.0.0/0"], "allow_out": ["1.1.1.1"]})
    probe = "curl -sk -m 3 -o /dev/null -w '%{{http_code}}' https://{} || true"

    def reached(host: str) -> bool:
        return sandbox.commands.run(probe.format(host)).stdout.startswith(("2", "3"))

    assert reached("1.1.1.1") and not reached("8.8.8.8")
    sandbox.pause()
    sandbox.connect()
    assert reached("1.1.1.1") and not reached("8.8.8.8")


def test_a_private_sandbox_keeps_its_tokens(sandboxes: Make) -> None:
    sandbox = sandboxes(network={"allow_public_traffic": False})
    token = sandbox.traffic_access_token
    sandbox.pause()
    other: Any = Sandbox.connect(sandbox.sandbox_id)
    assert other.traffic_access_token == token
    assert other.commands.run("echo on").stdout == "on\n"


def _serve(sandbox: Sandbox) -> str:
    sandbox.commands.run("echo served > index.html; python3 -m http.server 8000", background=True)
    url = f"https://{sandbox.get_host(8000)}/index.html"
    wait_for(lambda: requests.get(url, timeout=10).status_code == 200)
    return url


AUTO = {"on_timeout": "pause", "auto_resume": True}


def test_a_request_resumes_a_paused_sandbox_and_is_served(sandboxes: Make) -> None:
    sandbox, other = sandboxes(lifecycle=AUTO), sandboxes()
    url, other_url = _serve(sandbox), _serve(other)
    sandbox.pause()
    other.pause()
    assert not sandbox.is_running()  # and asking does not wake it
    assert sandbox.get_info().state is SandboxState.PAUSED
    assert requests.get(other_url, timeout=10).status_code == 502
    answer = requests.get(url, timeout=10)
    assert (answer.status_code, answer.text) == (200, "served\n")
    info = sandbox.get_info()
    assert info.state is SandboxState.RUNNING
    assert 290 < info.end_at.timestamp() - time.time() < 310
    assert other.get_info().state is SandboxState.PAUSED


def test_a_call_of_the_sdk_resumes_a_paused_sandbox(sandboxes: Make) -> None:
    sandbox = sandboxes(lifecycle=AUTO)
    sandbox.pause()
    assert sandbox.commands.run("echo awake").stdout == "awake\n"
    sandbox.files.write("/home/user/signed", "1")
    url = sandbox.download_url("/home/user/signed")
    sandbox.pause()
    unsigned = f"https://{sandbox.get_host(49983)}/files?path=/home/user/signed"
    for headers in ({}, {"X-Access-Token": "0" * 64}):
        assert requests.get(unsigned, headers=headers, timeout=10).status_code == 401
        assert sandbox.get_info().state is SandboxState.PAUSED
    assert requests.get(url, timeout=10).text == "1"
    assert sandbox.get_info().state is SandboxState.RUNNING


def test_only_who_may_enter_a_private_sandbox_resumes_it(sandboxes: Make) -> None:
    sandbox = sandboxes(lifecycle=AUTO, network={"allow_public_traffic": False})
    token = {"e2b-traffic-access-token": str(sandbox.traffic_access_token)}
    sandbox.commands.run("python3 -m http.server 8000", background=True)
    url = f"https://{sandbox.get_host(8000)}/"
    wait_for(lambda: requests.get(url, headers=token, timeout=10).status_code == 200)
    sandbox.pause()
    wrong = {"e2b-traffic-access-token": "0" * 64}
    assert requests.get(url, timeout=10).status_code == 403
    assert requests.get(url, headers=wrong, timeout=10).status_code == 403
    assert sandbox.get_info().state is SandboxState.PAUSED
    assert requests.get(url, headers=token, timeout=10).status_code == 200


def test_without_memory_the_files_stay_and_the_sandbox_starts_afresh(sandboxes: Make) -> None:
    sandbox = sandboxes(envs={"KEPT": "yes"}, metadata={"a": "b"})
    sandbox.files.write("/home/user/kept", "1")
    handle = sandbox.commands.run("sleep 1000", background=True)
    boot = sandbox.files.read(_BOOT_ID)
    assert sandbox.pause(keep_memory=False) is True
    assert sandbox.pause(keep_memory=False) is False
    assert not sandbox.is_running()
    assert states(SandboxState.PAUSED) == {sandbox.sandbox_id: "paused"}
    sandbox.connect()
    assert sandbox.files.read("/home/user/kept") == "1"
    assert sandbox.files.read(_BOOT_ID) != boot
    assert handle.pid not in [process.pid for process in sandbox.commands.list()]
    assert sandbox.commands.run("echo $KEPT; sudo -n id -u").stdout == "yes\n0\n"
    assert sandbox.get_info().metadata == {"a": "b"}


def test_a_sandbox_can_be_rebooted_out_of_a_pause(sandboxes: Make) -> None:
    sandbox = sandboxes()
    sandbox.commands.run("echo 1 > /home/user/kept; sleep 1000", background=True)
    wait_for(lambda: sandbox.files.exists("/home/user/kept"))
    sandbox.pause()
    sandbox.connect(on_resume="reboot")
    assert sandbox.commands.run("pgrep -c sleep || cat /home/user/kept").stdout == "0\n1\n"


def test_a_snapshot_makes_sandboxes(sandboxes: Make) -> None:
    sandbox = sandboxes()
    sandbox.files.write("/home/user/kept", "1")
    sandbox.commands.run("sleep 1000", background=True)
    snapshot = sandbox.create_snapshot()
    sandbox.files.write("/home/user/later", "1")
    assert sandbox.commands.run("pgrep -c sleep").stdout == "1\n"
    copies = [sandboxes(template=snapshot.snapshot_id) for _ in range(2)]
    for copy in copies:
        assert copy.files.read("/home/user/kept") == "1"
        assert not copy.files.exists("/home/user/later")
    listed = Sandbox.list_snapshots(sandbox_id=sandbox.sandbox_id).next_items()
    assert [item.snapshot_id for item in listed] == [snapshot.snapshot_id]
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is False
    assert copies[0].files.read("/home/user/kept") == "1"


def test_forks_start_where_the_file_system_is(sandboxes: Make) -> None:
    sandbox = sandboxes(envs={"KEPT": "yes"})
    sandbox.files.write("/home/user/kept", "1")
    forks = sandbox.fork(count=2, timeout=60)
    for fork in forks:
        assert isinstance(fork, Sandbox), fork
        try:
            assert fork.sandbox_id != sandbox.sandbox_id
            assert fork.files.read("/home/user/kept") == "1"
            assert fork.commands.run("echo $KEPT").stdout == "yes\n"
        finally:
            fork.kill()
