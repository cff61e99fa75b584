"""A machine that really runs short: creates are refused with the reason, what runs goes on."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from supervisor.home import Home

pytestmark = pytest.mark.timeout(240)

# Answers one JSON line for each of its own: a program under the SDK that lives through the test.
_CLIENT = """
import json, os, sys
import httpx
from e2b import Sandbox
from e2b.exceptions import SandboxException, RateLimitException
made = []
def denied(box):
    url = f"https://api.{os.environ['E2B_DOMAIN']}/sandboxes/{box.sandbox_id}/network/decisions"
    headers = {"X-API-Key": os.environ["E2B_API_KEY"]}
    return httpx.get(url + "?verdict=deny", headers=headers).json()["decisions"]
for line in sys.stdin:
    what = line.split()
    try:
        if what[0] == "create":
            made.append(Sandbox.create(timeout=600))
            answer = {"made": made[-1].sandbox_id}
        elif what[0] == "run":
            answer = {"said": made[0].commands.run(" ".join(what[1:])).stdout.strip()}
        elif what[0] == "everywhere":
            running = [box.commands.run(" ".join(what[1:]), background=True) for box in made]
            answer = {"all said": [handle.wait().stdout for handle in running]}
        elif what[0] == "denied":
            answer = {"denied": sorted({row["reason"] for box in made for row in denied(box)})}
        elif what[0] == "serve":
            made[0].commands.run(f"python3 -m http.server {what[1]}", background=True, timeout=0)
            answer = {}
        elif what[0] == "get":
            answer = {"status": httpx.get(f"https://{made[0].get_host(int(what[1]))}/").status_code}
        elif what[0] == "list":
            answer = {"listed": len(Sandbox.list().next_items())}
        elif what[0] == "snapshot":
            answer = {"snapshot": made[0].create_snapshot().snapshot_id}
        else:
            answer = {"killed": made.pop().kill()}
    except SandboxException as error:
        status = getattr(error, "status_code", None)
        kind = 429 if isinstance(error, RateLimitException) else status
        answer = {"refused": kind, "why": str(error)}
    except Exception as error:  # whatever it is, the test is to say it
        answer = {"broken": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
"""


class Client:
    """The program, and what it answers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, line: str) -> dict[str, Any]:
        """Have it do one thing."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def refused(self, status: int, *reasons: str) -> None:
        """The next create is refused, and so are those after it."""
        self.ask("run sleep 0.5")  # readings may be a moment old
        for _ in range(2):
            answer = self.ask("create")
            assert answer.get("refused") == status, answer
            assert all(reason in answer["why"] for reason in reasons), answer
        self.goes_on()

    def goes_on(self) -> None:
        """What is there is served as before."""
        assert self.ask("run echo alive") == {"said": "alive"}
        assert self.ask("list")["listed"] >= 1


@contextlib.contextmanager
def client(home: Home, *enter: str) -> Iterator[Client]:
    """A client of the node that runs; `enter` is a command that runs others where it does."""
    script = f'eval "$({sys.executable} -m sandgate env)" && exec {sys.executable} -c "$PROGRAM"'
    with subprocess.Popen(
        ["ip", "netns", "exec", home.namespace, *enter, "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**home.environment(), "PROGRAM": _CLIENT},
    ) as process:
        try:
            yield Client(process)
        finally:
            process.kill()


@pytest.fixture
def small_disk(home: Home) -> Iterator[Path]:
    """`data_dir` on a file system of 96 MiB and 1,500 files. Returns where to fill it."""
    templates = (home.data / "templates").readlink()
    options = "size=96m,nr_inodes=1500,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", home.data], check=True)
    try:
        (home.data / "templates").symlink_to(templates)
        with home.config.open("a") as config:
            config.write("disk_reserve_mb = 32\n")
        yield home.data / "fill"
    finally:
        home.sandgate("down")
        subprocess.run(["umount", home.data], check=True)


def test_a_full_disk_or_one_without_inodes_refuses_creates_and_ends_no_sandbox(
    home: Home, small_disk: Path
) -> None:
    assert home.sandgate("up").returncode == 0, home.log()
    with client(home) as user:
        assert "made" in user.ask("create")
        _fill(small_disk, leave=30 << 20)
        user.refused(507, "MiB are free in data_dir", "disk_reserve_mb")
        assert user.ask("snapshot").get("refused") == 507
        _fill(small_disk, leave=0)
        user.refused(507, "only 0 MiB are free in data_dir")
        small_disk.unlink()
        _eventually_made(user)
        assert user.ask("kill") == {"killed": True}
        user.goes_on()

        small_disk.mkdir()
        files = 0
        with contextlib.suppress(OSError):
            while True:
                (small_disk / str(files)).touch()
                files += 1
        assert 900 < files < 1500
        user.refused(507, "only 0 more files can be made in data_dir")
        for file in small_disk.iterdir():
            file.unlink()
        _eventually_made(user)


@pytest.mark.long
def test_a_low_limit_of_open_files_refuses_creates_before_it_is_reached(home: Home) -> None:
    limit = 330
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert hard > limit
    up = ("prlimit", f"--nofile={limit}:{limit}", sys.executable, "-m", "sandgate", "up")
    done = home.run(*up)
    assert done.returncode == 0, done.stderr + home.log()
    with client(home) as user:
        made = 0
        while "made" in (answer := user.ask("create")):
            made += 1
            assert made < limit
        assert made >= 3, answer
        assert answer["refused"] == 429 and "more files can be opened" in answer["why"], answer
        user.goes_on()
        for name, process in home.processes().items():
            assert len(os.listdir(f"/proc/{process.pid}/fd")) < limit * 0.8, name
        user.ask("kill")
        user.goes_on()
    assert "Too many open files" not in home.log()


@pytest.mark.long
def test_a_tight_control_group_around_the_node_refuses_creates(home: Home) -> None:
    groups = {name: _make_group(name) for name in ("pids", "memory")}
    try:
        join = "".join(f"echo $$ > {group}/cgroup.procs && " for group, *_ in groups.values())
        done = home.run("sh", "-c", f'{join}exec "$@"', "-", sys.executable, "-m", "sandgate", "up")
        assert done.returncode == 0, done.stderr + home.log()
        with client(home) as user:
            assert "made" in user.ask("create")
            for name, room, reason in (
                ("pids", 300, "more processes and threads"),
                ("memory", 100 << 20, "MiB of the machine's memory"),
            ):
                group, used, limit = groups[name]
                (group / limit).write_text(str(int((group / used).read_text()) + room))
                user.refused(429, reason, "control group")
                (group / limit).write_text("-1" if limit == "memory.limit_in_bytes" else "max")
                _eventually_made(user)
    finally:
        home.sandgate("down")
        for group in {group for group, *_ in groups.values()}:
            group.rmdir()


_FORK = """
import os, time
forked = 0
try:
    while os.fork():
        forked += 1
    time.sleep(5)
except OSError:
    print(forked, flush=True)
    time.sleep(5)
"""


@pytest.mark.long
def test_short_of_pids_creates_are_refused_and_nothing_of_the_node_or_a_sandbox_dies(
    home: Home,
) -> None:
    """In a pid namespace, which has a `pid_max` of its own from Linux 6.14 on."""
    before = Path("/proc/sys/kernel/pid_max").read_text()
    with _pid_namespace(home.namespace) as enter:
        tasks = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
        limit = f"echo {tasks + 900} > /proc/sys/kernel/pid_max"
        assert home.run(*enter, "sh", "-c", limit).returncode == 0
        assert Path("/proc/sys/kernel/pid_max").read_text() == before, "before Linux 6.14"
        node = (*enter, sys.executable, "-m", "sandgate")
        command = f"echo {base64.b64encode(_FORK.encode()).decode()} | base64 -d | python3 -"
        done = home.run(*node, "up")
        assert done.returncode == 0, done.stderr + home.log()
        try:
            with client(home, *enter) as user, client(home, *enter) as hostile:
                assert "made" in user.ask("create")
                assert [*hostile.ask("create"), *hostile.ask("create")] == ["made", "made"]
                with ThreadPoolExecutor() as pool:
                    forked = pool.submit(hostile.ask, f"everywhere {command}")
                    while "made" in (answer := user.ask("create")):
                        user.ask("kill")
                    assert answer["refused"] == 429, answer
                    assert "more processes and threads" in answer["why"], answer
                    assert "kernel.pid_max" in answer["why"]
                    assert user.ask("list")["listed"] >= 3
                    forked.result()  # one of the two may not even have got a process for a pipe
                _eventually_made(user)
                user.goes_on()
            assert "starting it again" not in home.log()
        finally:
            home.run(*node, "down")


@contextlib.contextmanager
def _pid_namespace(network: str) -> Iterator[tuple[str, ...]]:
    """The command that runs others in a new pid namespace, which has a /proc of its own."""
    unshare = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sleep", "infinity")
    with subprocess.Popen(["ip", "netns", "exec", network, *unshare]) as process:
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            while not (first := children.read_text().split()):
                time.sleep(0.01)
            while Path(f"/proc/{first[0]}/comm").read_text() != "sleep\n":  # /proc is mounted then
                time.sleep(0.01)
            yield ("nsenter", f"--target={first[0]}", "--pid", "--mount")
        finally:
            process.kill()  # it ignores SIGTERM, and its child is killed with it


def _make_group(controller: str) -> tuple[Path, str, str]:
    """A group, and its files of what is used and of the limit."""
    mount, name = Path("/sys/fs/cgroup"), f"sgtest{os.getpid()}"
    if (mount / "cgroup.controllers").exists():
        (mount / "cgroup.subtree_control").write_text(f"+{controller}")
        group, used, limit = mount / name, f"{controller}.current", f"{controller}.max"
    elif controller == "pids":
        group, used, limit = mount / "pids" / name, "pids.current", "pids.max"
    else:
        group = mount / "memory" / name
        used, limit = "memory.usage_in_bytes", "memory.limit_in_bytes"
    group.mkdir(exist_ok=True)  # version 2 has one for both
    return group, used, limit


def _fill(path: Path, leave: int) -> None:
    """Write until no more than `leave` bytes are free in its file system."""
    found = os.statvfs(path.parent)
    size = found.f_bavail * found.f_frsize - leave
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        for _ in range(0, size, 4096):
            file.write(bytes(4096))
        while leave == 0:
            file.write(bytes(4096))


def _eventually_made(user: Client) -> None:
    for _ in range(20):  # readings are a moment old
        if "made" in (answer := user.ask("create")):
            return
        user.ask("run sleep 0.1")
    raise AssertionError(answer)
