"""A Debian root file system from nothing, by mmdebstrap, with its progress."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import termios
from collections import deque
from collections.abc import Callable
from pathlib import Path

from sandgate.templates.definition import Definition, TemplateError
from sandgate.templates.root import build_environment

_KEYS = Path(__file__).with_name("keys")
"""Debian's archive keys, and the only ones trusted: Ubuntu knows none or too old ones."""

_PHASES = (
    # Start of mmdebstrap's message, what we call it, and where it starts in percent of the whole
    # (by its usual share of the time).
    ("I: running apt-get update", "fetching package lists", 0),
    ("I: downloading packages", "downloading packages", 10),
    ("I: extracting archives", "unpacking", 25),
    ("I: installing essential packages", "installing essential packages", 35),
    ("I: installing remaining packages", "installing packages", 55),
    ("I: cleaning", "cleaning up", 98),
)
_PERCENT = re.compile(r"(?:^|\s)(\d{1,3}\.\d\d)(?=\s|$)")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class PhaseParser:
    """Turns mmdebstrap's terminal output into (step, fraction of the bootstrap that is done)."""

    def __init__(self) -> None:
        self._index = 0
        self.tail: deque[str] = deque(maxlen=20)
        """Last lines that are neither a known step nor a progress bar: the error, if it fails."""

    def feed(self, line: str) -> tuple[str, float] | None:
        """`line` is what stands between two line feeds or carriage returns."""
        line = _ESCAPE.sub("", line).strip()
        for index, (prefix, label, start) in enumerate(_PHASES):
            if line.startswith(prefix):
                self._index = index
                return label, start / 100
        found = _PERCENT.search(line)
        if found:
            _, label, start = _PHASES[self._index]
            ends = [*(begin for _, _, begin in _PHASES[1:]), 100]
            span = ends[self._index] - start
            return label, (start + span * min(float(found[1]), 100.0) / 100) / 100
        if line and line != "done" and not line.startswith("I: "):
            self.tail.append(line)
        return None


def sources(suite: str, mirror: str) -> list[str]:
    """apt lines for a mirror: the release, its updates, and security updates.

    The security archive is taken to lie beside the mirror's `debian` folder, as
    `debian-security`. Raises TemplateError if the mirror's address does not end that way.
    """
    mirror = mirror.rstrip("/")
    if not mirror.startswith(("http://", "https://")) or not mirror.endswith("/debian"):
        raise TemplateError(
            f"debian_mirror: {mirror!r} must be an http(s) address that ends in /debian, "
            "with the security archive beside it at /debian-security"
        )
    security = f"{mirror}-security"
    return [
        f"deb {mirror} {suite} main",
        f"deb {mirror} {suite}-updates main",
        f"deb {security} {suite}-security main",
    ]


def bootstrap(
    definition: Definition,
    target: Path,
    mirror: str | None,
    progress: Callable[[str, float], None],
) -> None:
    """Install the definition's Debian packages into `target`, a folder that does not exist yet.

    The folder it is made in is for this build alone, and any account may enter it. `progress` is
    called with a step and the fraction done. `mirror` None: mmdebstrap's default.
    Raises TemplateError.
    """
    if definition.suite is None:
        raise TemplateError(f"template {definition.name!r} has no 'suite' to bootstrap from")
    # apt reads them without privileges, and our own folder may be closed to others.
    keys, scratch = target.with_name("keys"), target.with_name("tmp")
    for folder in (keys, scratch):
        folder.mkdir()
        folder.chmod(0o755)
    for key in _KEYS.glob("*.asc"):
        shutil.copyfile(key, keys / key.name)
        (keys / key.name).chmod(0o644)
    argv = [
        # The whole build tree dies with us, even when we are killed.
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child"),
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"),
        f"--keyring={keys}",
        *(f"--dpkgopt={option}" for option in definition.dpkg_options),
        *(f"--aptopt={option}" for option in definition.apt_options),
        f"--include={','.join(definition.packages)}",
        definition.suite,
        str(target),
        *(sources(definition.suite, mirror) if mirror is not None else ()),
    ]
    parser = PhaseParser()
    # mmdebstrap reports percentages to terminals only.
    terminal, end = pty.openpty()
    try:
        termios.tcsetwinsize(end, (24, 100))
        try:
            process = subprocess.Popen(
                argv,
                # Its temporary files go with the build, even if it is killed.
                env=build_environment() | {"TMPDIR": str(scratch)},
                stdin=subprocess.DEVNULL,
                stdout=end,
                stderr=end,
                start_new_session=True,
            )
        finally:
            os.close(end)
        try:
            _follow(terminal, parser, progress)
            status = process.wait()
        finally:
            process.kill()
            process.wait()
    except FileNotFoundError as error:
        raise TemplateError(f"{argv[0]} is not installed; run `make install`") from error
    finally:
        os.close(terminal)
    for folder in (keys, scratch):
        shutil.rmtree(folder)
    if status != 0:
        raise TemplateError(_failure(definition.name, status, parser))


def _follow(terminal: int, parser: PhaseParser, progress: Callable[[str, float], None]) -> None:
    pending = ""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # EIO: all that held the other end are gone
            return
        if not data:
            return
        *lines, pending = re.split(r"[\r\n]", pending + data.decode(errors="replace"))
        pending = pending[-4096:]
        for line in lines:
            step = parser.feed(line)
            if step is not None:
                progress(*step)


def _failure(name: str, status: int, parser: PhaseParser) -> str:
    said = "\n".join(f"  {line}" for line in parser.tail)
    remedy = "Check that the machine reaches its Debian mirror, or set `debian_mirror`."
    if "mmdebstrap: No such file" in said or "failed to execute mmdebstrap" in said:
        remedy = "Run `make install`, which installs mmdebstrap."
    return f"template {name!r}: mmdebstrap ended with status {status}:\n{said}\n{remedy}"
