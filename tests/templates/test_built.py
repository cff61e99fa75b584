"""What the built templates promise, tried inside them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from sandgate.templates import Template
from templates.chroots import inside

pytestmark = pytest.mark.timeout(600)

NAMES = ["base", "code-interpreter-v1"]


def _output(template: Template, scratch: Path, *argv: str) -> str:
    result = inside(template, scratch, *argv)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python -V", "Python 3.11."),
        ("python3 -V", "Python 3.11."),
        ("python -m venv --help | head -1", "usage: venv"),
        ("pip --version", "pip "),
        ("pip config list", "global.break-system-packages='true'"),
        ("node -p 6*7", "42"),
        ("npm --version", ""),
        ("npx --version", ""),
        ("git --version", "git version"),
        ("curl --version", "curl "),
        ("wget --version", "GNU Wget"),
        ("openssl version", "OpenSSL 3."),
        ("ps --version", "ps from procps"),
        ("ip -V", "ip utility"),
        ("ping -V", "ping from iputils"),
        ("dig -v 2>&1", "DiG 9."),
        ("tput -T xterm cols", "80"),
        ("printf x | xz | xz -dc", "x"),
        ("nano --version", " GNU nano"),
        ("less --version", "less "),
        ("unzip -v", "UnZip"),
        ("LC_ALL=C.UTF-8 locale charmap", "UTF-8"),
        ("apt-get check -qq && echo fine", "fine"),
        ("dpkg --audit && echo fine", "fine"),
        (". /etc/os-release; echo $VERSION_CODENAME", "bookworm"),
        ("id user", "uid=1000(user) gid=1000(user) groups=1000(user)"),
        ("getent passwd user | cut -d: -f6,7", "/home/user:/bin/bash"),
        ("ls -A /home/user | sort | xargs", ".bash_logout .bashrc .profile"),
        ("stat -c %U:%G /home/user/.bashrc", "user:user"),
        ("runuser -u user -- sudo -n id -u", "0"),
        ("runuser -u user -- sudo -n -u user id -un", "user"),
        ("cat /etc/resolv.conf", "nameserver 8.8.8.8"),
        ("head -1 /etc/hosts", "127.0.0.1 localhost"),
        ("wc -c < /etc/machine-id", "0"),
        ("grep -c ^deb /etc/apt/sources.list", "3"),
        (
            "grep -o ' bookworm[^ ]* main' /etc/apt/sources.list | xargs",
            "bookworm main bookworm-updates main bookworm-security main",
        ),
        ("test -u /usr/bin/sudo -a -u /bin/su && echo setuid", "setuid"),
        ("python -c 'import ssl; ssl.create_default_context()' && echo fine", "fine"),
    ],
)
def test_it_has_what_a_shell_user_expects(
    built: dict[str, Template], tmp_path: Path, name: str, command: str, expected: str
) -> None:
    output = _output(built[name], tmp_path, "bash", "-c", f"set -o pipefail; {command}")
    assert output.startswith(expected.strip()), output
    assert output


def test_no_program_asks_for_capabilities_that_a_sandbox_lacks(built: dict[str, Template]) -> None:
    root = built["base"].layers[-1]
    for folder in ("usr/bin", "usr/sbin"):
        for program in (root / folder).iterdir():
            assert os.listxattr(program, follow_symlinks=False) == [], program


def test_the_code_interpreter_is_a_layer_over_base(built: dict[str, Template]) -> None:
    assert built["code-interpreter-v1"].layers[1:] == built["base"].layers
    assert (built["code-interpreter-v1"].layers[0] / "usr/bin/jq").is_file()
    assert not (built["base"].layers[0] / "usr/bin/jq").exists()


def test_pip_installs_into_the_system_for_root_and_user(
    built: dict[str, Template], tmp_path: Path
) -> None:
    script = """
    mkdir -p /srv/hello && cd /srv/hello
    printf '[project]\\nname = "hello"\\nversion = "1"\\n' >pyproject.toml
    echo 'greeting = "hi"' >hello.py
    chown -R user /srv/hello
    runuser -u user -- pip install --quiet --no-build-isolation . >&2
    (cd / && runuser -u user -- python -c 'import hello; print(hello.__file__)')
    pip install --quiet --no-build-isolation . >&2
    cd /
    python -c 'import hello; print(hello.__file__)'
    """
    files = _output(built["base"], tmp_path, "bash", "-ec", script).split()
    assert files[0].startswith("/home/user/.local/lib/python3.11/")
    assert files[1].startswith("/usr/local/lib/python3.11/")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_machine_or_of_the_build_is_left(
    built: dict[str, Template], name: str
) -> None:
    layer = built[name].layers[0]
    for folder in ("dev", "proc", "run", "sys", "tmp", "var/tmp"):
        if (layer / folder).exists():
            assert list((layer / folder).iterdir()) == [], folder
    for folder in ("var/cache/apt", "var/lib/apt/lists", "var/log"):
        assert [path for path in (layer / folder).rglob("*") if path.is_file()] == []
    assert not list(layer.rglob("*.deb"))
    strangers = [
        path
        for folder, folders, files in os.walk(layer)
        for entry in (*folders, *files)
        if not stat.S_ISLNK((status := (path := Path(folder, entry)).lstat()).st_mode)
        and (stat.S_ISBLK(status.st_mode) or status.st_uid > 1000)
    ]
    assert strangers == []


@pytest.mark.parametrize("name", NAMES)
def test_manuals_and_translations_are_left_out_now_and_later(
    built: dict[str, Template], name: str
) -> None:
    layer = built[name].layers[0]
    for folder in ("usr/share/man", "usr/share/info", "usr/share/locale"):
        files = [path.name for path in (layer / folder).rglob("*") if path.is_file()]
        assert files in ([], ["locale.alias"], ["dir"]), folder
    rules = (built["base"].layers[0] / "etc/dpkg/dpkg.cfg.d").glob("*")
    assert "path-exclude=/usr/share/man/*" in "".join(path.read_text() for path in rules)


def test_base_is_small_and_its_manifest_lists_its_packages(built: dict[str, Template]) -> None:
    (layer,) = built["base"].layers
    manifest = json.loads((layer.parent / "manifest.json").read_text())
    assert 200e6 < manifest["size_bytes"] < 450e6
    assert manifest["packages"]["bash"].startswith("5.")
    assert "jq" not in manifest["packages"]
