"""Starting a node in the background, and stopping it from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path

from sandgate.settings import CONFIG_VARIABLE, Settings
from sandgate.supervisor.build import build_id
from sandgate.supervisor.layout import Layout
from sandgate.supervisor.logfile import open_log, tail
from sandgate.supervisor.processes import read_pid_file
from sandgate.supervisor.status import NodeStatus, State, inspect, wait_until_ready
from sandgate.supervisor.supervisor import HAND_OVER_SIGNAL, SEE_LOG

START_SECONDS = 120.0
STOP_SECONDS = 120.0


_HAND_OVER_SECONDS = 10.0


class Outcome(StrEnum):
    """What starting a node came to."""

    WAS_UP = "was up already"
    STARTED = "is up"
    REPLACED = "has taken over, with all sandboxes,"


class NodeError(RuntimeError):
    """The node could not be started or stopped. The text says why and what to do."""


def start(
    settings: Settings,
    config: Path | None,
    seconds: float = START_SECONDS,
    *,
    restart: bool = False,
) -> tuple[NodeStatus, Outcome]:
    """Start the node unless it runs; returns once it is ready.

    If another program than this one runs it, or with `restart`, its processes are replaced one by
    one; its sandboxes go on. Raises :class:`NodeError` with the end of the node's log if it does
    not get ready.
    """
    require_root("starting a node")
    layout = Layout.of(settings)
    outcome = Outcome.STARTED
    if inspect(settings).supervisor is not None:
        status = wait_until_ready(settings, seconds, give_up=lambda: layout.supervisor() is None)
        # Stopped: what ran was about to end.
        if status.state is not State.STOPPED:
            status = _ready_or_raise(status, seconds, "")
            if not restart and (status.record is None or status.record.build == build_id()):
                return status, Outcome.WAS_UP
            _hand_over(status)
            outcome = Outcome.REPLACED
    layout.prepare_data_dir()
    handle = open_log(layout.log)
    try:
        said_before = os.fstat(handle).st_size
        command = [sys.executable, "-I", "-u", "-m", "sandgate", "serve"]
        if named := config or os.environ.get(CONFIG_VARIABLE):
            command += ["--config", str(Path(named).absolute())]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(handle)

    def lost() -> bool:
        # Ended, and not because another one was faster.
        return process.poll() is not None and layout.supervisor() is None

    status = wait_until_ready(settings, seconds, give_up=lost)
    return _ready_or_raise(status, seconds, tail(layout.log, said_before)), outcome


def _hand_over(status: NodeStatus) -> None:
    """Have the supervisor end and leave its components to the next. Raises NodeError."""
    supervisor, record = status.supervisor, status.record
    if supervisor is None or record is None:
        return  # it has just ended
    if record.managed:
        raise NodeError(
            "a service manager runs this node, and would start the former program again; run "
            "`sandgate install` and then `systemctl restart sandgate` (sandboxes go on)"
        )
    if _release(record.version) > _release(version("sandgate")):
        raise NodeError(
            f"a newer version ({record.version}) runs this node; its database may be unknown to "
            f"this one ({version('sandgate')}). Use the newer one, or end it with `sandgate down`"
        )
    supervisor.send(HAND_OVER_SIGNAL)
    if not supervisor.wait(_HAND_OVER_SECONDS):
        raise NodeError(f"the supervisor (pid {supervisor.pid}) did not hand over; nothing changed")


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0]))


def stop(settings: Settings, config: Path | None, seconds: float = STOP_SECONDS) -> bool:
    """Stop the node and wait for its end. False if none ran.

    Of a node whose supervisor was killed, the rest (components, sandboxes) is taken over by a new
    supervisor and then stopped. Raises :class:`NodeError` if that fails or something is left.
    """
    require_root("stopping a node")
    layout = Layout.of(settings)
    supervisor = layout.supervisor()
    if supervisor is None:
        if not layout.record.exists():
            return False
        status, _ = start(settings, config)
        supervisor = status.supervisor
    if supervisor is not None:
        supervisor.send(signal.SIGTERM)
        if not supervisor.wait(seconds):
            raise NodeError(
                f"the node (pid {supervisor.pid}) did not end within {seconds:g} s; "
                f"its log is {layout.log}"
            )
    if layout.supervisor() is not None:
        return True  # started anew meanwhile; what is there now is that one's
    left = [
        f"{path.stem} (pid {process.pid})"
        for path in sorted(layout.pid_dir.glob("*.pid"))
        if (process := read_pid_file(path)) is not None and process.alive()
    ]
    left += [f"sandbox {path.stem}" for path in layout.cells.glob("*")]
    if left:
        raise NodeError(f"the node ended, but left running: {', '.join(left)}; see {layout.log}")
    return True


def require_root(what: str) -> None:
    """Raises :class:`NodeError` unless root runs this."""
    if os.geteuid() != 0:
        raise NodeError(f"{what} needs root; use sudo")


def _ready_or_raise(status: NodeStatus, seconds: float, log: str) -> NodeStatus:
    if status.state is State.READY:
        return status
    said = f"\n--- its log:\n{log}" if log else ""
    if status.state is State.STOPPED:
        # What `serve` said last, and says to everybody who runs it in the foreground.
        _, found, reason = f"\n{log}".rpartition("\nError: ")
        if found and SEE_LOG not in reason:
            raise NodeError(f"the node ended during its start: {reason}")
        raise NodeError(f"the node ended during its start{said}")
    raise NodeError(
        f"the node was not ready within {seconds:g} s: {'; '.join(status.problems)}{said}"
    )
