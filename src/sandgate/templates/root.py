"""Working inside a root file system under construction: mounts, chroot, files."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sandgate.templates.definition import TemplateError

_CLONE_NEWNS = 0x00020000
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_PROXY_VARIABLES = (
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)


def build_environment() -> dict[str, str]:
    """A small environment for build tools: nothing of the caller's but its proxy settings."""
    environment = {"PATH": _SEARCH_PATH, "HOME": "/root", "LC_ALL": "C.UTF-8"}
    environment |= {key: os.environ[key] for key in _PROXY_VARIABLES if key in os.environ}
    return environment


def run_tool(argv: Sequence[str], doing: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a program to its end and return its output. `environment` None: that of build tools.

    Raises TemplateError with the end of its error output; `doing` says what failed.
    """
    try:
        result = subprocess.run(
            argv,
            env=build_environment() if environment is None else environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise TemplateError(f"{doing}: {argv[0]} is not installed; run `make install`") from error
    if result.returncode != 0:
        tail = "\n".join((result.stderr or result.stdout).strip().splitlines()[-15:])
        raise TemplateError(f"{doing}: {argv[0]} failed with status {result.returncode}:\n{tail}")
    return result.stdout


def enter_private_mount_namespace() -> None:
    """Leave the caller's mount namespace, so that build mounts vanish even if we are killed.

    Raises OSError. Single-threaded processes only.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot make a mount namespace: {os.strerror(number)}")
    run_tool(["mount", "--make-rprivate", "/"], "private mount namespace")


@contextmanager
def mounted(arguments: Sequence[str], target: Path) -> Iterator[None]:
    """`mount <arguments> <target>` for the length of the block."""
    run_tool(["mount", *arguments, str(target)], f"mounting on {target}")
    try:
        yield
    finally:
        # Lazy, for a package script may have left a process behind that keeps it busy.
        run_tool(["umount", "--lazy", str(target)], f"unmounting {target}")


def remove_tree(path: Path) -> None:
    """Delete a folder, but first unmount what an interrupted build left mounted below it."""
    prefix = os.fsencode(path.resolve()) + b"/"
    with Path("/proc/self/mountinfo").open("rb") as table:
        points = [line.split()[4] for line in table]
    for point in reversed(points):
        if point.startswith(prefix):
            run_tool(["umount", "--lazy", os.fsdecode(point)], f"cleaning up {path}")
    shutil.rmtree(path)


@dataclass(frozen=True, slots=True)
class Root:
    """A root file system being built, mounted or plain."""

    path: Path

    def run(self, *argv: str) -> str:
        """Run a program inside and return its output. Raises TemplateError."""
        return run_tool(["chroot", str(self.path), *argv], f"in the template, {argv[0]}")

    def at(self, inside: str) -> Path:
        """Host path of a path inside. Symbolic links are the caller's concern."""
        return self.path / inside.lstrip("/")

    def write(self, inside: str, content: str, mode: int) -> None:
        """Put a root-owned file inside, in place of whatever is there."""
        target = self.at(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_text(content)
        target.chmod(mode)


@contextmanager
def chroot_mounts(root: Root) -> Iterator[None]:
    """Give a root what programs in a chroot need: /proc, /dev, /tmp, /run and the host's DNS.

    All of it lies on temporary mounts, so nothing of it ends up in the template.
    """
    with ExitStack() as stack:
        stack.enter_context(mounted(["-t", "proc", "proc"], root.at("/proc")))
        for folder, mode in (("dev", "0755"), ("run", "0755"), ("tmp", "1777")):
            options = ["-t", "tmpfs", "-o", f"mode={mode}", "tmpfs"]
            stack.enter_context(mounted(options, root.at(folder)))
        for device in _DEVICES:
            target = root.at(f"/dev/{device}")
            target.touch()
            stack.enter_context(mounted(["--bind", f"/dev/{device}"], target))
        resolver = root.at("/etc/resolv.conf")
        if resolver.is_file() and Path("/etc/resolv.conf").exists():
            stack.enter_context(mounted(["--bind", "/etc/resolv.conf"], resolver))
        yield
