"""Processes named so that a reused pid is never mistaken for the one that was meant."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from sandgate.durable import replace_file

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process of this boot. `start` is its start time in clock ticks since boot (proc(5))."""

    pid: int
    start: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has `pid` now, or None if there is none or it is a zombie."""
        stat = _stat(pid)
        if stat is None or stat.state in "ZX":
            return None
        return cls(pid, stat.start, _boot_id())

    def alive(self) -> bool:
        """Is it still there, and not just waiting to be reaped?"""
        return ProcessId.of(self.pid) == self

    def uptime(self) -> float:
        """Seconds since it started."""
        return max(
            0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - self.start / os.sysconf("SC_CLK_TCK")
        )

    def send(self, signum: signal.Signals) -> bool:
        """Signal it. False if it is gone; another process that got the pid is never hit."""
        handle = self._open()
        if handle is None:
            return False
        try:
            signal.pidfd_send_signal(handle, signum)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for its end. True if it has ended."""
        handle = self._open()
        if handle is None:
            return True
        try:
            poller = select.poll()
            poller.register(handle, select.POLLIN)
            return bool(poller.poll(max(0.0, timeout) * 1000))
        finally:
            os.close(handle)

    def _open(self) -> int | None:
        """A pidfd, checked after opening: from then on it can mean no other process."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if not self.alive():
            os.close(handle)
            return None
        return handle


def end(process: ProcessId, signum: signal.Signals, grace: float) -> None:
    """Signal `process`, wait `grace` seconds for its end, then kill it."""
    if process.send(signum) and not process.wait(grace):
        process.send(signal.SIGKILL)
        process.wait(5.0)


def end_group(leader: ProcessId) -> None:
    """Kill what is left of the process group that `leader` led, once `leader` is gone.

    Nothing happens if the pid has been given to another process meanwhile.
    """
    if leader.boot != _boot_id():
        return
    present = _stat(leader.pid)
    if present is not None and present.start != leader.start:
        return
    try:
        os.killpg(leader.pid, 0)  # as a rule nobody is left; to look at every process takes long
    except ProcessLookupError:
        return
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        stat = _stat(int(entry.name))
        if stat is None or stat.group != leader.pid or int(entry.name) == leader.pid:
            continue
        member = ProcessId(int(entry.name), stat.start, leader.boot)
        if member.send(signal.SIGKILL):
            member.wait(5.0)


def write_pid_file(path: Path, process: ProcessId) -> None:
    """Record `process` at `path`, at once or not at all."""
    replace_file(path, json.dumps(asdict(process)).encode(), synced=False)


def read_pid_file(path: Path) -> ProcessId | None:
    """The process recorded at `path`, dead or alive; None if there is no usable record.

    Raises PermissionError where another user may not look.
    """
    try:
        data = json.loads(path.read_bytes())
        return ProcessId(int(data["pid"]), int(data["start"]), str(data["boot"]))
    except (FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    group: int
    start: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name, in parentheses, may itself hold spaces and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(state=fields[0], group=int(fields[2]), start=int(fields[19]))


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
