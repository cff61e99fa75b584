"""The container tools at hand, with the sandboxes' root file system and as little else as each can.

None of them gets a network: for a sandbox's rules they have no counterpart.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from benchmarks.place import Place
from benchmarks.report import Report
from sandgate.templates import load

_APART = ["unshare", "--mount", "sh", "-c", 'umount "$0" 2>/dev/null; exec "$@"']
_APART.append("/sys/fs/cgroup/unified")
"""Their mounts end with them; and none of them bears hybrid control groups. Costs about 2 ms."""

_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")
"""Else podman raises them, which not every root may."""
_IMAGE = "sandgate-bench"
_GROUP = f"sandgate-bench-{os.getpid()}"
_SECONDS = 20.0
"""How long a daemon may take to begin, or to end."""

Contender = Callable[[], float]
"""Has `echo hello` run and returns milliseconds."""


class Unusable(Exception):
    """A tool does not work here. The text says why."""


@contextmanager
def contenders(place: Place, report: Report) -> Iterator[tuple[dict[str, Contender], ...]]:
    """What works here: a new container with one command in it, and a command in a live one."""
    rootfs = load(place.node.data_dir)["base"].layers[-1]
    with ExitStack() as stack:
        new: dict[str, Contender] = {}
        live: dict[str, Contender] = {}

        def crun() -> None:
            new["crun run"] = _crun(rootfs, place.scratch)

        def podman() -> None:
            new["podman run"] = _podman(rootfs, place.scratch)

        def docker() -> None:
            client = stack.enter_context(_docker(rootfs, place))
            new["docker run"] = _timed(*client, "run", "--rm", *_ISOLATED, _IMAGE, "echo", "hello")
            live["docker exec"] = stack.enter_context(_docker_exec(client))

        for tool in (crun, podman, docker):
            if shutil.which(tool.__name__) is None:
                report.leave_out(f"{tool.__name__} is not installed")
                continue
            try:
                tool()
            except (OSError, subprocess.SubprocessError, Unusable) as error:
                report.leave_out(f"{tool.__name__}: {error}")
        yield new, live


def _timed(*command: str) -> Contender:
    def run() -> float:
        begun = time.perf_counter()
        said = _output(*command)
        took = (time.perf_counter() - begun) * 1e3
        if said != b"hello\n":
            raise Unusable(f"it said {said!r:.100}")
        return took

    run()
    return run


def _output(*command: str) -> bytes:
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        raise Unusable(done.stderr.decode(errors="replace").strip()[-200:])
    return done.stdout


def _crun(rootfs: Path, scratch: Path) -> Contender:
    """Over the files themselves, read-only, without limits and seccomp."""
    bundle = scratch / "crun"
    bundle.mkdir()
    subprocess.run([*_APART, "crun", "spec"], cwd=bundle, check=True)
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    config["process"]["args"] = ["echo", "hello"]
    config["process"]["terminal"] = False
    config["process"].pop("rlimits", None)
    config["root"] = {"path": str(rootfs), "readonly": True}
    path.write_text(json.dumps(config))
    crun = ("crun", "--cgroup-manager=disabled", "run", "--bundle", str(bundle), "bench")
    return _timed(*_APART, *crun)


def _podman(rootfs: Path, scratch: Path) -> Contender:
    """Over an overlay of the files, without control groups, which it cannot make everywhere."""
    podman = ("podman", "--root", f"{scratch}/podman", "--runroot", f"{scratch}/podman-run")
    run = ("run", "--rm", "--network=none", "--cgroups=disabled", *_LIMITS)
    return _timed(*_APART, *podman, *run, "--rootfs", f"{rootfs}:O", "echo", "hello")


_ISOLATED = ("--network=none", f"--cgroup-parent=/{_GROUP}")


@contextmanager
def _docker(rootfs: Path, place: Place) -> Iterator[tuple[str, ...]]:
    """A daemon of our own, whose image is made of the files. How to call its client."""
    if shutil.which("dockerd") is None:
        raise Unusable("dockerd is not installed")
    home = place.scratch / "docker"
    home.mkdir()
    client = ("docker", "-H", f"unix://{home}/socket")
    files = ("--data-root", f"{home}/data", "--exec-root", f"{home}/exec", "-p", f"{home}/pid")
    network = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false")
    daemon = place.start(place.bare, *_APART, "dockerd", "-H", client[2], *files, *network)
    try:
        deadline = time.monotonic() + _SECONDS
        while subprocess.run([*client, "info"], check=False, capture_output=True).returncode:
            if time.monotonic() > deadline or daemon.poll() is not None:
                raise Unusable("its daemon did not start")
            time.sleep(0.1)
        pack = ["tar", "-C", str(rootfs), "-c", "."]
        with subprocess.Popen(pack, stdout=subprocess.PIPE) as tar:
            load_image = [*client, "import", "-", _IMAGE]
            subprocess.run(load_image, stdin=tar.stdout, stdout=subprocess.DEVNULL, check=True)
        yield client
    finally:
        daemon.terminate()
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(_SECONDS)
        for group in Path("/sys/fs/cgroup").glob(f"**/{_GROUP}"):
            with suppress(OSError):
                group.rmdir()


@contextmanager
def _docker_exec(client: tuple[str, ...]) -> Iterator[Contender]:
    run = (*client, "run", "--detach", "--rm", *_ISOLATED, _IMAGE, "sleep", "3600")
    container = _output(*run).decode().strip()
    try:
        yield _timed(*client, "exec", container, "echo", "hello")
    finally:
        _output(*client, "kill", container)
