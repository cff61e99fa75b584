"""What the configuration refuses, and that HAProxy takes it as it is meant."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from ingress.harness import DOMAIN, Gate, connected, echo, running, serving, serving_api
from sandgate.ingress.config import command, maxconn_for, render_config, write_files
from sandgate.ingress.pages import ANSWERS
from sandgate.ingress.routes import Route


@pytest.mark.parametrize("inside", [True, False])
def test_haproxy_accepts_the_configuration_without_a_warning(tmp_path: Path, inside: bool) -> None:
    gate = Gate(tmp_path, inside=inside)
    write_files(gate.config)
    done = subprocess.run(
        ["haproxy", "-c", "-f", str(gate.config.config_file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr + done.stdout


def test_the_same_value_renders_the_same_text(tmp_path: Path) -> None:
    config = Gate(tmp_path).config
    assert render_config(config) == render_config(config)
    assert command(config) == ["haproxy", "-db", "-f", str(config.config_file)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("directory", Path("/with space")),
        ("directory", Path("relative")),
        ("certificate", Path('/a"b')),
        ("control_socket", Path("/a\nb")),
        ("admin_socket", Path("/a$b")),
        ("log", Path("/a'b")),
        ("domain", "a b"),
        ("domain", "a\nfrontend x"),
        ("user", "root; x"),
        ("group", "a b"),
        ("admin_user", "a#b"),
        ("chroot", Path("/elsewhere")),
        ("maxconn", 1),
    ],
)
def test_what_cannot_be_written_into_a_configuration_is_refused(
    tmp_path: Path, field: str, value: object
) -> None:
    with pytest.raises(ValueError, match=field):
        Gate(tmp_path).configure(**{field: value})


def test_connections_are_limited_by_what_may_be_opened() -> None:
    for limit in (1024, 20_000, 65_536):
        assert maxconn_for(limit) * 6 < limit
    assert maxconn_for(10**9) == 20_000
    assert maxconn_for(64) == 16


def test_pages_are_self_contained_and_safe_to_expand() -> None:
    for answer in ANSWERS:
        page = answer.html()
        assert page.startswith("<html") and page.endswith("</html>")
        assert "://" not in page and "<script" not in page
        # A percent sign that starts no sample would be eaten by HAProxy.
        assert page.count("%") == page.count("%[") == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can lock itself in and change its user")
async def test_as_root_haproxy_locks_itself_in_and_drops_to_its_user(tmp_path: Path) -> None:
    account = pwd.getpwnam("nobody")
    tmp_path.chmod(0o711)  # HAProxy must get to the sockets in it, and to nothing above it
    gate = Gate(tmp_path)
    gate.configure(user="nobody", admin_user="nobody", chroot=tmp_path)
    with running(gate):
        async with (
            connected(gate, Route("abc", gate.sandbox(1))),
            serving(gate.sandbox(1), echo) as port,
            serving_api(gate.config.control_socket, echo),
        ):
            gate.config.control_socket.chmod(0o666)
            for http2 in (False, True):
                response = await gate.request(gate.host(port, "abc"), http2=http2)
                assert response.status_code == 200
                assert (await gate.request(f"api.{DOMAIN}", http2=http2)).status_code == 200
        # Looked at last: the sockets are there a moment before the user is changed.
        status = Path(f"/proc/{gate.pid}/status").read_text()
        assert f"Uid:\t{account.pw_uid}\t{account.pw_uid}\t{account.pw_uid}" in status
        assert "CapEff:\t0000000000000000" in status
        assert Path(f"/proc/{gate.pid}/root").resolve() == tmp_path
        assert gate.config.admin_socket.stat().st_uid == account.pw_uid
