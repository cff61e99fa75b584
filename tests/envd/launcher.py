"""Starts a daemon as the real launcher does, in a root file system made for the test.

Run as a program: reads a configuration from standard input, takes a listening socket as
descriptor 3 and lives until standard input ends. The daemon is PID 1 of its own namespace, finds
no file of the virtual environment, and fails on any import.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.abc
import importlib.machinery
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from sandgate.envd import EnvdConfig
from sandgate.envd.daemon import preload, serve
from sandgate.envd.metrics import Measure
from sandgate.runtime import linux
from sandgate.runtime.privileges import CAPABILITIES

LISTENER = 3
MEASURE = Measure(cpu_ns=5, cpu_count=2, memory=30 << 20, cache=4 << 20, memory_limit=100 << 20)
_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWPID = 0x20000, 0x8000000, 0x20000000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
_libc = ctypes.CDLL(None, use_errno=True)

PASSWD = """root:x:0:0:root:/root:/bin/bash
user:x:1000:1000:,,,:/home/user:/bin/bash
other:x:1001:1001::/home/other:/bin/bash
broken:x:abc
"""
GROUP = "root:x:0:\nuser:x:1000:\nother:x:1001:\naudio:x:29:user,other\nbad\n"
PROFILE = 'export PATH="/usr/local/bin:/usr/bin:/bin"\n'


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)


def _mount(source: str, target: str | Path, kind: str, flags: int = 0, data: str = "") -> None:
    arguments = [text.encode() or None for text in (source, str(target), kind, data)]
    _check(_libc.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[3]), f"mount on {target}")


def _make_root(root: Path) -> None:
    _mount("", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", data="mode=755,size=512m")
    for name in ("usr", "etc", "proc", "dev", "dev/pts", "run", "tmp", "root", "small", "old"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        if Path(f"/{name}").is_symlink():
            (root / name).symlink_to(f"usr/{name}")
        elif Path(f"/{name}").exists():
            (root / name).mkdir()
            _mount(f"/{name}", root / name, "", _MS_BIND | _MS_REC)
    _mount("/usr", root / "usr", "", _MS_BIND)
    _mount("", root / "usr", "", _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
    (root / "etc/ld.so.cache").write_bytes(Path("/etc/ld.so.cache").read_bytes())
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    (root / "etc/profile").write_text(PROFILE)
    for uid, name in ((1000, "user"), (1001, "other")):
        home = root / "home" / name
        home.mkdir(parents=True)
        os.chown(home, uid, uid)
    (root / "root").chmod(0o700)
    (root / "tmp").chmod(0o1777)
    _mount("proc", root / "proc", "proc")
    _mount("devpts", root / "dev/pts", "devpts", data="newinstance,ptmxmode=0666,mode=0620,gid=5")
    _mount("tmpfs", root / "small", "tmpfs", data="mode=777,size=1m")
    (root / "dev/ptmx").symlink_to("pts/ptmx")
    for name, minor in (("null", 3), ("zero", 5), ("full", 7), ("urandom", 9)):
        os.mknod(root / "dev" / name, 0o20666, os.makedev(1, minor))
        (root / "dev" / name).chmod(0o666)
    os.mknod(root / "dev/tty", 0o20666, os.makedev(5, 0))
    (root / "dev/tty").chmod(0o666)


def _enter_root(root: Path) -> None:
    os.chdir(root)
    _check(_libc.syscall(_SYS_PIVOT_ROOT, b".", b"old"), "pivot_root")
    os.chdir("/")
    _check(_libc.umount2(b"/old", _MNT_DETACH), "umount")


class _NoImports(importlib.abc.MetaPathFinder):
    """Makes an import in the sandbox a failure that a test sees."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        with open("/run/imports", "a") as file:
            file.write(f"{name}\n")
        raise ImportError(f"{name} was not preloaded")


def _be_daemon(config: EnvdConfig, root: Path, listener: socket.socket) -> NoReturn:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _make_root(root)
    _enter_root(root)
    linux.limit_capabilities(CAPABILITIES)
    linux.set_dumpable(False)
    sys.path.clear()
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [_NoImports()]
    serve(config, listener, lambda: MEASURE, lambda: print("ready", flush=True))


def main() -> None:
    config = EnvdConfig.from_json(sys.stdin.readline())
    root = Path(sys.argv[1])
    listener = socket.socket(fileno=LISTENER)
    preload()
    gc.collect()
    gc.freeze()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWPID), "unshare")
    pid = os.fork()
    if pid == 0:
        _be_daemon(config, root, listener)
    listener.close()
    os.write(1, f"{pid}\n".encode())
    sys.stdin.read()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
