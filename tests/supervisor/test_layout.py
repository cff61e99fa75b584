from __future__ import annotations

import os
import pwd
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sandgate.settings import Settings
from sandgate.supervisor.layout import Layout, LayoutError, ServiceAccount
from sandgate.supervisor.processes import ProcessId

NOBODY = ServiceAccount.of("nobody")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout.of(Settings(data_dir=tmp_path / "data"))
    layout.prepare_data_dir()
    return layout


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o7777)


def test_directories_have_the_permissions_that_keep_the_service_users_in_their_place(
    layout: Layout,
) -> None:
    layout.prepare_run_dir(NOBODY)
    assert mode(layout.data_dir) == "0o755"
    assert mode(layout.run_dir) == "0o711"
    assert mode(layout.pid_dir) == "0o700"
    assert layout.run_dir.stat().st_uid == 0
    assert layout.pid_dir.stat().st_uid == 0


def test_a_service_user_can_use_its_sockets_and_neither_make_nor_list_nor_replace_any(
    layout: Layout, tmp_path: Path
) -> None:
    for parent in (tmp_path, *tmp_path.parents[:-1]):
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o001)
    layout.prepare_run_dir(NOBODY)
    with socket.socket(socket.AF_UNIX) as own, socket.socket(socket.AF_UNIX) as others:
        own.bind(str(layout.run_dir / "control.sock"))
        os.chown(layout.run_dir / "control.sock", NOBODY.uid, 0)
        others.bind(str(layout.run_dir / "launcher.sock"))
        (layout.run_dir / "launcher.sock").chmod(0o660)
        own.listen()
        others.listen()
        done = _as_nobody(layout)
    assert done.returncode == 0, done.stderr


def _as_nobody(layout: Layout) -> subprocess.CompletedProcess[str]:
    code = f"""
import os, pathlib, socket
os.setgroups([]); os.setresgid(*[{NOBODY.gid}] * 3); os.setresuid(*[{NOBODY.uid}] * 3)
run = pathlib.Path({str(layout.run_dir)!r})
socket.socket(socket.AF_UNIX).connect(str(run / "control.sock"))
for attempt in (
    lambda: socket.socket(socket.AF_UNIX).connect(str(run / "launcher.sock")),
    lambda: socket.socket(socket.AF_UNIX).bind(str(run / "new.sock")),
    lambda: list(run.iterdir()),
    lambda: (run / "launcher.sock").unlink(),
    lambda: (run / "pids").rename(run / "gone"),
    lambda: list((run / "pids").iterdir()),
):
    try:
        attempt()
    except PermissionError:
        continue
    raise SystemExit("allowed")
"""
    return subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)


def test_sockets_of_an_earlier_run_are_removed_and_other_files_are_kept(layout: Layout) -> None:
    layout.prepare_run_dir(NOBODY)
    layout.socket("egress").touch()
    (layout.run_dir / "other").touch()
    layout.prepare_run_dir(NOBODY)
    layout.remove_sockets()
    assert not layout.socket("egress").exists()
    assert (layout.run_dir / "other").exists()


def test_a_directory_that_is_not_roots_is_refused(layout: Layout) -> None:
    layout.run_dir.mkdir()
    os.chown(layout.run_dir, NOBODY.uid, NOBODY.gid)
    with pytest.raises(LayoutError, match=r"must be a directory that belongs to root"):
        layout.prepare_run_dir(NOBODY)


def test_a_second_node_in_the_directory_is_refused_and_told_of_the_first(layout: Layout) -> None:
    assert layout.supervisor() is None
    lock = layout.take_lock()
    try:
        assert layout.supervisor() == ProcessId.of(os.getpid())
        said = rf"already runs in \S+/data \(pid {os.getpid()}\).*`sandgate down`"
        with pytest.raises(LayoutError, match=said):
            layout.take_lock()
    finally:
        os.close(lock)
    os.close(layout.take_lock())


def test_the_api_key_is_made_once_and_for_root_alone(layout: Layout) -> None:
    key = layout.ensure_api_key()
    assert re.fullmatch(r"e2b_[0-9a-f]{40}", key)
    assert mode(layout.api_key) == "0o600"
    assert layout.ensure_api_key() == key
    layout.api_key.unlink()
    assert layout.ensure_api_key() != key


@pytest.mark.parametrize("content", ["", "e2b_", "e2b_" + "g" * 40, "e2b_" + "0" * 41])
def test_a_damaged_api_key_is_refused_without_showing_it(layout: Layout, content: str) -> None:
    layout.api_key.write_text(content)
    layout.api_key.chmod(0o600)
    with pytest.raises(LayoutError, match=r"holds no API key.*remove it") as caught:
        layout.ensure_api_key()
    assert not content or content not in str(caught.value).replace("(e2b_ and", "")


def test_an_api_key_that_others_can_read_is_refused(layout: Layout) -> None:
    layout.ensure_api_key()
    layout.api_key.chmod(0o644)
    with pytest.raises(LayoutError, match="chmod 600"):
        layout.ensure_api_key()


def test_the_service_user_must_exist_and_not_be_root() -> None:
    with pytest.raises(LayoutError, match=r"service_user = 'nosuchuser'.*useradd --system"):
        ServiceAccount.of("nosuchuser")
    with pytest.raises(LayoutError, match=r"service_user = 'root': must not be root"):
        ServiceAccount.of("root")
    entry = pwd.getpwnam("nobody")
    assert (NOBODY.uid, NOBODY.gid) == (entry.pw_uid, entry.pw_gid)
