from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandgate.supervisor.processes import (
    ProcessId,
    end,
    end_group,
    read_pid_file,
    write_pid_file,
)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_recognised_while_it_lives(sleeper: subprocess.Popen[bytes]) -> None:
    process = ProcessId.of(sleeper.pid)
    assert process is not None
    assert process.alive()
    assert 0 <= process.uptime() < 60
    sleeper.kill()
    sleeper.wait()
    assert not process.alive()


def test_a_zombie_does_not_count_as_alive(sleeper: subprocess.Popen[bytes]) -> None:
    process = ProcessId.of(sleeper.pid)
    assert process is not None
    sleeper.kill()
    assert process.wait(5)
    assert not process.alive()
    assert ProcessId.of(sleeper.pid) is None


def test_a_process_with_the_pid_but_another_start_time_is_never_signalled(
    sleeper: subprocess.Popen[bytes],
) -> None:
    real = ProcessId.of(sleeper.pid)
    assert real is not None
    earlier = ProcessId(real.pid, real.start - 1, real.boot)
    other_boot = ProcessId(real.pid, real.start, "another boot")
    for mistaken in (earlier, other_boot):
        assert not mistaken.alive()
        assert not mistaken.send(signal.SIGKILL)
        end(mistaken, signal.SIGKILL, 1)
        end_group(mistaken)
    assert real.alive()


def test_a_process_that_ignores_the_polite_signal_is_killed() -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as handle:
        assert handle.stdout is not None
        handle.stdout.readline()
        process = ProcessId.of(handle.pid)
        assert process is not None
        end(process, signal.SIGTERM, 0.2)
        assert handle.wait(5) == -signal.SIGKILL


def test_what_a_dead_leader_left_in_its_group_is_killed() -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as handle:
        assert handle.stdout is not None
        orphan = ProcessId.of(int(handle.stdout.readline()))
        leader = ProcessId.of(handle.pid)
        assert leader is not None
        assert orphan is not None
        handle.kill()
        handle.wait()
        assert orphan.alive()
        end_group(leader)
        assert not orphan.alive()


def test_a_pid_file_gives_back_what_was_written(tmp_path: Path) -> None:
    own = ProcessId.of(os.getpid())
    assert own is not None
    path = tmp_path / "x.pid"
    write_pid_file(path, own)
    assert read_pid_file(path) == own
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [None, b"", b"17", b"{}", b'{"pid": "x"}', b"\xff"])
def test_an_unusable_pid_file_is_no_process(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.pid"
    if content is not None:
        path.write_bytes(content)
    assert read_pid_file(path) is None
