"""The control process itself: unprivileged, restartable, and with all imports behind it.

The gateway's control socket and HAProxy are real; the launcher is one that starts nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.conftest import KEY
from api.launcher_double import LauncherDouble
from ingress.harness import DOMAIN, Gate
from node.fakes import make_template
from sandgate.accounts import hash_key
from sandgate.egress.control import ControlServer
from sandgate.egress.table import SandboxTable

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs HAProxy"),
]

USER = pwd.getpwnam("nobody")

# Notes every module that is looked for once the process is no longer root's.
_WATCHED = """
import os, runpy, sys
log = os.open(sys.argv.pop(), os.O_WRONLY | os.O_APPEND)
def hook(event, args):
    if event == "import" and os.getuid() != 0:
        os.write(log, str(args[0]).encode() + b"\\n")
sys.addaudithook(hook)
runpy.run_module("sandgate.api", run_name="__main__", alter_sys=True)
"""


class Machine:
    """A data directory, the other processes, and the control process as often as it is started."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.run_dir = data_dir / "run"
        self.run_dir.mkdir()
        self.run_dir.chmod(0o711)
        self.imports = data_dir / "imports"
        self.imports.touch()
        make_template(data_dir, "base")
        self.launcher = LauncherDouble(self.run_dir / "launcher.sock")
        self.table = SandboxTable()
        self.gate = Gate(data_dir / "gate")
        self.gate.configure(
            control_socket=self.run_dir / "control.sock",
            admin_socket=self.run_dir / "haproxy.sock",
            admin_user=USER.pw_name,
        )
        self.process: subprocess.Popen[bytes] | None = None

    def config(self, **changes: Any) -> bytes:
        """What the supervisor writes."""
        settings = {"data_dir": str(self.data_dir), "service_user": USER.pw_name}
        config = {
            "settings": settings,
            "public_domain": f"{DOMAIN}:{self.gate.port}",
            "api_key_hash": hash_key(KEY),
            **dict.fromkeys(("proxy_user", "egress_user", "recorder_user"), USER.pw_name),
        }
        return json.dumps({**config, **changes}).encode()

    def start(self) -> None:
        """Start the control process."""
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", _WATCHED, str(self.imports)],
            stdin=subprocess.PIPE,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
        )
        assert self.process.stdin is not None
        self.process.stdin.write(self.config())
        self.process.stdin.close()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it; its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(10)
        self.process = None
        return status

    async def ready(self, api: httpx.AsyncClient) -> None:
        """Wait for it."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if (await api.get("/health")).status_code == 200:
                    return
            await asyncio.sleep(0.02)
        raise AssertionError("the control process did not become ready")


@pytest.fixture
def machine() -> Iterator[Machine]:
    """In a directory that the service user can enter."""
    directory = Path(tempfile.mkdtemp(prefix="sandgate-control-"))
    directory.chmod(0o755)
    try:
        made = Machine(directory)
        with made.launcher:
            try:
                made.gate.start()
                yield made
            finally:
                made.gate.stop()
                if made.process is not None:
                    made.process.kill()
                    made.process.wait(5)
    finally:
        shutil.rmtree(directory)


@pytest.fixture
async def api(machine: Machine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the running process, through HAProxy, with the gateway's table being served."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(machine.run_dir / "egress.sock"))
    (machine.run_dir / "egress.sock").chmod(0o666)
    server = ControlServer(machine.table, IPv4Network("198.18.0.0/16"), {USER.pw_uid})
    async with await server.serve(listener):
        machine.start()
        transport = httpx.AsyncHTTPTransport(verify=machine.gate.tls())
        async with httpx.AsyncClient(
            transport=transport,
            base_url=f"https://{machine.gate.address}:{machine.gate.port}",
            headers={"X-API-KEY": KEY, "Host": f"api.{DOMAIN}"},
            timeout=10,
        ) as client:
            await machine.ready(client)
            yield client
            if machine.process is not None:
                assert machine.stop() == 0


def status(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def test_it_runs_without_any_privilege_and_keeps_its_files_to_itself(
    machine: Machine, api: httpx.AsyncClient
) -> None:
    assert machine.process is not None
    pid = machine.process.pid
    facts = status(pid)
    assert set(facts["Uid"].split()) == {str(USER.pw_uid)}
    assert set(facts["Gid"].split()) == {str(USER.pw_gid)}
    assert facts["Groups"] == ""
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(facts[kind], 16) == 0, kind
    assert facts["NoNewPrivs"] == "1"
    # A process that cannot be dumped has files in /proc that belong to root.
    assert Path(f"/proc/{pid}/environ").stat().st_uid == 0
    modes = {
        path: (path.stat().st_mode & 0o777, path.stat().st_uid)
        for path in (machine.data_dir / "store").rglob("*")
    }
    assert machine.data_dir / "store" / "store.db" in modes
    assert set(modes.values()) == {(0o600, USER.pw_uid)}
    assert (machine.data_dir / "store").stat().st_mode & 0o777 == 0o700
    socket_facts = (machine.run_dir / "control.sock").stat()
    assert socket_facts.st_mode & 0o777 == 0o660
    assert (socket_facts.st_uid, socket_facts.st_gid) == (USER.pw_uid, USER.pw_gid)


async def test_all_that_it_needs_was_imported_while_it_was_root(
    machine: Machine, api: httpx.AsyncClient
) -> None:
    network = {"allowOut": ["example.com"], "denyOut": ["0.0.0.0/0"], "allowPublicTraffic": False}
    body = {"templateID": "base", "timeout": 60, "network": network, "metadata": {"a": "b"}}
    made = (await api.post("/v2/sandboxes", json=body)).json()
    sandbox_id = made["sandboxID"]
    short = await api.post("/v2/sandboxes", json={"templateID": "base", "timeout": 1})
    dead = await api.post("/v2/sandboxes", json={"templateID": "base"})
    assert [short.status_code, dead.status_code] == [201, 201]
    assert len(machine.launcher.sandboxes) == len(machine.table) == 3
    assert machine.launcher.configs[sandbox_id]["access_token"] == made["envdAccessToken"]
    host = machine.gate.host(8080, sandbox_id)
    assert (await machine.gate.request(host)).status_code == 403
    machine.launcher.report_exit(dead.json()["sandboxID"])
    path = f"/sandboxes/{sandbox_id}"
    started = (await api.get(path)).json()["startedAt"]
    for method, url, content, expected in (
        ("GET", "/v2/sandboxes", None, 200),
        ("GET", "/v2/sandboxes?metadata=a%3Db&limit=1&state=running", None, 200),
        ("GET", f"/v2/sandboxes?startedAfter={started}&nextToken=x", None, 400),
        ("GET", "/sandboxes", None, 200),
        ("POST", f"/v2{path}/connect", {"timeout": 100}, 200),
        ("POST", f"{path}/timeout", {"timeout": 100}, 204),
        ("POST", f"{path}/refreshes", {}, 204),
        ("PUT", f"{path}/network", {"denyOut": ["1.1.1.1"]}, 204),
        ("PUT", f"{path}/network", {"denyOut": ["x"]}, 400),
        ("POST", "/v2/sandboxes", {"templateID": "missing"}, 404),
        ("POST", "/v2/sandboxes", {"templateID": []}, 400),
        ("POST", "/sandboxes", {"templateID": "base", "timeout": -1}, 400),
        ("GET", "/volumes", None, 501),
        ("PATCH", path, None, 405),
        ("GET", "/nothing/é", None, 404),
        ("GET", "/openapi.json", None, 200),
        ("OPTIONS", "/v2/sandboxes", None, 204),
    ):
        answer = await api.request(method, url, json=content)
        assert answer.status_code == expected, (method, url, answer.text)
        assert "server" not in answer.headers
    await asyncio.sleep(1.1)
    assert [item["sandboxID"] for item in (await api.get("/v2/sandboxes")).json()] == [sandbox_id]
    assert (await api.delete(path)).status_code == 204
    assert (await machine.gate.request(host)).status_code == 502
    assert machine.launcher.sandboxes == {} and len(machine.table) == 0
    assert machine.stop() == 0
    assert machine.imports.read_text() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restart_takes_over_the_sandboxes(
    machine: Machine, api: httpx.AsyncClient, number: signal.Signals
) -> None:
    network = {"denyOut": ["1.1.1.1"], "allowPublicTraffic": False}
    made = await api.post("/v2/sandboxes", json={"templateID": "base", "network": network})
    sandbox_id = made.json()["sandboxID"]
    began = time.monotonic()
    assert machine.stop(number) == (0 if number is signal.SIGTERM else -number)
    assert time.monotonic() - began < 4
    assert list(machine.launcher.sandboxes) == [sandbox_id]
    machine.launcher.policies[sandbox_id] = {}
    machine.gate.stop()
    machine.gate.start()
    machine.start()
    await machine.ready(api)
    again = await api.post(f"/v2/sandboxes/{sandbox_id}/connect", json={})
    assert again.json() == made.json()
    assert machine.launcher.policies[sandbox_id]["deny"] == ["1.1.1.1/32"]
    host = machine.gate.host(8080, sandbox_id)
    assert (await machine.gate.request(host)).status_code == 403


def test_a_bad_configuration_is_reported_without_its_values() -> None:
    config = {"settings": {"data_dir": 5}, "public_domain": "a.b", "api_key_hash": "s3cret"}
    ended = subprocess.run(
        [sys.executable, "-I", "-m", "sandgate.api"],
        input=json.dumps(config).encode(),
        stderr=subprocess.PIPE,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 1
    assert b"bad configuration" in ended.stderr and b"api_key_hash" in ended.stderr
    assert b"s3cret" not in ended.stderr
