"""`python -m sandgate.templates`, with a Debian mirror that is not there or never answers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandgate.templates.build import build
from templates.tiny import Recorder, definitions


def _command(data_dir: Path, *argv: str, mirror: str = "http://127.0.0.1:9/debian") -> list[str]:
    # What starts the tests in the background may ignore SIGINT, which children inherit.
    return [
        *(
            "env",
            "--default-signal=INT,HUP,TERM",
            f"SANDGATE_DATA_DIR={data_dir}",
            f"SANDGATE_DEBIAN_MIRROR={mirror}",
        ),
        *("http_proxy=", sys.executable, "-m", "sandgate.templates", *argv),
    ]


def _run(data_dir: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(data_dir, *argv), capture_output=True, text=True, check=False)


@contextmanager
def _stuck_build(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """A build whose mirror took the connection and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as mirror:
        mirror.settimeout(20)
        address = f"http://127.0.0.1:{mirror.getsockname()[1]}/debian"
        process = subprocess.Popen(
            _command(data_dir, "build", "base", mirror=address), stderr=subprocess.PIPE, text=True
        )
        try:
            connection, _ = mirror.accept()
            with connection:
                yield process, connection
        finally:
            process.kill()
            process.communicate()


def _processes_about(data_dir: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(data_dir / "templates") in line:
                found.append(line)
    return found


def _temporary_files() -> set[Path]:
    return set(Path("/tmp").glob("mmdebstrap.*"))


def _wait_until_gone(data_dir: Path) -> None:
    deadline = time.monotonic() + 10
    while left := _processes_about(data_dir):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_an_unreachable_mirror_is_an_error_that_says_so(tmp_path: Path) -> None:
    result = _run(tmp_path, "build", "base")
    assert result.returncode == 1
    assert "template 'base': mmdebstrap ended with status" in result.stderr
    assert "Connection refused" in result.stderr
    assert "debian_mirror" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in (tmp_path / "templates").iterdir()] == [".lock"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_build_that_is_told_to_end_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with _stuck_build(tmp_path) as (process, _connection):
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 1
        assert "Traceback" not in errors
        _wait_until_gone(tmp_path)
        assert [path.name for path in (tmp_path / "templates").iterdir()] == [".lock"]


def test_a_killed_build_takes_its_processes_with_it(tmp_path: Path) -> None:
    before = _temporary_files()
    with _stuck_build(tmp_path) as (process, connection):
        assert any("mmdebstrap" in line for line in _processes_about(tmp_path))
        process.kill()
        _wait_until_gone(tmp_path)
        connection.settimeout(10)
        while connection.recv(4096):
            pass
    assert _temporary_files() <= before
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(tmp_path) not in mounts


def test_a_template_that_is_not_defined_is_named_with_those_that_are(tmp_path: Path) -> None:
    result = _run(tmp_path, "build", "windows")
    assert result.returncode == 1
    assert "no template definition 'windows'; defined are: base, code-interp" in result.stderr


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    result = _run(tmp_path, "build", "--config", str(tmp_path / "none.toml"))
    assert result.returncode == 1
    assert f"configuration file {tmp_path}/none.toml does not exist" in result.stderr


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("colour = 1")
    result = _run(tmp_path, "list", "--config", str(settings))
    assert result.returncode == 1
    assert "colour" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_list_shows_what_is_built_and_where(tmp_path: Path) -> None:
    assert "sandgate template build" in _run(tmp_path, "list").stderr
    build(tmp_path, definitions(), ["child"], Recorder())
    lines = _run(tmp_path, "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["child", "root"]
    assert lines[0].endswith(f"{tmp_path}/templates/child/rootfs")


def test_without_root_the_build_says_who_can(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    result = subprocess.run(
        ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", *_command(tmp_path, "build")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "needs root" in result.stderr
