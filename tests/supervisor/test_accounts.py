"""A user for each component: whoever takes one over has not the others."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from sandgate.supervisor.layout import Accounts, LayoutError
from sandgate.supervisor.processes import ProcessId
from supervisor.home import Home, up

pytestmark = pytest.mark.timeout(180)

USERS = {
    "supervisor": "root",
    "launcher": "root",
    "control": "sandgate",
    "egress": "sandgate-egress",
    "recorder": "sandgate-recorder",
    "haproxy": "sandgate-proxy",
}
SOCKETS = {
    # Its own too, for the sake of a proxy of before that still serves.
    "control": {"launcher", "egress", "recorder", "haproxy", "control", "wake"},
    "egress": {"decisions"},
    "recorder": {"decisions"},
    "haproxy": {"control", "wake"},
}
"""What the user of each component can connect to: what it has to, and nothing else."""

# Does, as the user that it is told, all that one would want to do to the other components.
_ATTEMPTS = """
import ctypes, json, os, signal, socket, sys
uid, gid, data, run, others = json.loads(sys.argv[1])
os.setgroups([]); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
reached, opened, hurt = [], [], []
for name in sorted(("launcher", "egress", "haproxy", "control", "wake", "recorder", "decisions")):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        try:
            socket.socket(socket.AF_UNIX, kind).connect(f"{run}/{name}.sock")
            reached.append(name)
        except OSError as error:
            pass
def tries(path, way):
    try:
        os.close(os.open(path, way))
        opened.append(path)
    except OSError:
        pass
for top in ("store", "certificates", "cells", "run", "log"):
    for directory, names, files in os.walk(f"{data}/{top}"):
        for name in files:
            tries(f"{directory}/{name}", os.O_RDWR)
for name in ("store/store.db", "store/decisions.db", "api_key", "keys.json", "lock",
             "run/node.json", "run/haproxy/haproxy.cfg", "log/node.log"):
    tries(f"{data}/{name}", os.O_RDONLY)
libc = ctypes.CDLL(None, use_errno=True)
for pid in others:
    for part in ("mem", "environ", "maps", "fd", "root"):
        tries(f"/proc/{pid}/{part}", os.O_RDONLY)
    if libc.ptrace(16, pid, 0, 0) == 0:
        hurt.append(pid)
    try:
        os.kill(pid, 0)
        hurt.append(pid)
    except PermissionError:
        pass
print(json.dumps([sorted(set(reached)), opened, hurt]))
"""


def test_no_component_reaches_what_is_another_s(home: Home) -> None:
    up(home)
    running = home.processes()
    assert {name: _user_of(process) for name, process in running.items()} == USERS
    for name, sockets in SOCKETS.items():
        reached, opened, hurt = _attempts(home, running, name)
        assert set(reached) == sockets, name
        own = {
            path for path in opened if name == "control" and path.startswith(f"{home.data}/store/")
        }
        allowed = {"keys.json"} if name == "control" else set()
        # Not secret, and of use to nobody else: HAProxy's pages.
        pages = {path for path in opened if path.startswith(f"{home.data}/run/haproxy/")}
        rest = set(opened) - own - pages - {f"{home.data}/{one}" for one in allowed}
        assert rest == set(), name
        assert hurt == [], name
    assert _attempts(home, running, "control")[1], "it has its store"


def test_a_missing_user_is_named_before_anything_is_started(home: Home) -> None:
    home.config.write_text(home.config.read_text() + 'service_user = "nobody"\n')
    done = home.sandgate("up")
    assert done.returncode != 0
    assert "nobody-egress and nobody-recorder and nobody-proxy" in done.stderr
    assert "useradd --system" in done.stderr
    assert not (home.data / "run").exists()


def test_users_are_looked_up_and_must_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = Accounts.of("sandgate")
    assert [one.name for one in accounts.all] == [
        "sandgate",
        "sandgate-egress",
        "sandgate-recorder",
        "sandgate-proxy",
    ]
    entry = pwd.getpwnam("sandgate")
    monkeypatch.setattr(pwd, "getpwnam", lambda _: entry)
    with pytest.raises(LayoutError, match="must be different users"):
        Accounts.of("sandgate")


def _user_of(process: ProcessId) -> str:
    # A process that is not dumpable shows root as its owner, so ask for the uid it runs with.
    status = Path(f"/proc/{process.pid}/status").read_text()
    return pwd.getpwuid(int(status.split("Uid:")[1].split()[0])).pw_name


def _attempts(
    home: Home, running: dict[str, ProcessId], name: str
) -> tuple[list[str], list[str], list[int]]:
    entry = pwd.getpwnam(USERS[name])
    others = [process.pid for other, process in running.items() if other != name]
    told = [entry.pw_uid, entry.pw_gid, str(home.data), str(home.data / "run"), others]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _ATTEMPTS, json.dumps(told)],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    reached, opened, hurt = json.loads(done.stdout)
    return reached, opened, hurt
