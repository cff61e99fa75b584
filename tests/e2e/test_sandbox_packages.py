"""apt-get and pip work in a sandbox when the policy lets them reach their server, and only then."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest
from e2b import ALL_TRAFFIC
from e2b_code_interpreter import Sandbox as CodeInterpreter

from e2e.box import Box
from internet import Internet

HOST = "packages.example.com"
_CONTROL = """Package: sandgate-greeting
Version: 1.0
Architecture: all
Maintainer: Test <test@example.com>
Description: Says hello
"""


@pytest.fixture(scope="module", autouse=True)
def packages(world: Internet, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A Debian repository and a Python index with one package each, served by the internet."""
    root = tmp_path_factory.mktemp("packages")
    _make_debian_repository(root / "debian", tmp_path_factory.mktemp("deb"))
    _make_python_index(root / "simple")
    world.publish(HOST, root)


def _make_debian_repository(repository: Path, build: Path) -> None:
    repository.mkdir()
    program = build / "usr" / "bin" / "sandgate-greeting"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho hello from apt\n")
    program.chmod(0o755)
    (build / "DEBIAN").mkdir()
    (build / "DEBIAN" / "control").write_text(_CONTROL)
    build.chmod(0o755)
    package = repository / "greeting.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", str(build), str(package)],
        check=True,
        capture_output=True,
    )
    data = package.read_bytes()
    index = (
        f"{_CONTROL}Filename: ./greeting.deb\nSize: {len(data)}\n"
        f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
    ).encode()
    (repository / "Packages").write_bytes(index)
    (repository / "Release").write_text(
        f"SHA256:\n {hashlib.sha256(index).hexdigest()} {len(index)} Packages\n"
    )


def _make_python_index(index: Path) -> None:
    folder = index / "sandgate-greeting"
    folder.mkdir(parents=True)
    info = "sandgate_greeting-1.0.dist-info"
    files = {
        "sandgate_greeting.py": "text = 'hello from pip'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: sandgate-greeting\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    wheel = folder / "sandgate_greeting-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
            record += f"{name},sha256={digest.decode().rstrip('=')},{len(text)}\n"
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    (folder / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')


_APT = (
    "cd /tmp && echo 'deb [trusted=yes] http://packages.example.com/debian ./' > list && "
    "O='-o Dir::Etc::sourcelist=/tmp/list -o Dir::Etc::sourceparts=- -o Acquire::Retries=0' && "
    "sudo apt-get $O update && sudo apt-get $O install -y sandgate-greeting && sandgate-greeting"
)
_PIP = (
    "pip install --no-cache-dir --retries 0 --break-system-packages --user "
    "--index-url https://packages.example.com/simple/ sandgate-greeting && "
    "python3 -c 'import sandgate_greeting; print(sandgate_greeting.text)'"
)


def test_apt_get_and_pip_install(box: Box) -> None:
    box.names(HOST)
    apt = box.sh(_APT, timeout=60)
    assert apt.stdout.endswith("hello from apt\n"), apt.stderr
    pip = box.sh(_PIP, timeout=60)
    assert pip.stdout.endswith("hello from pip\n"), pip.stderr


def test_they_do_not_where_the_policy_denies_it(other_box: Box, internet: Internet) -> None:
    other_box.names("api.example.com")
    assert other_box.sh(_APT, timeout=60).exit_code != 0
    assert other_box.sh(_PIP, timeout=60).exit_code != 0
    other_box.policy()
    assert not internet.contacts(destination="93.184.216.50")


_RUN_CODE_PIP = (
    "!pip install --no-cache-dir --retries 0 --quiet "
    "--index-url https://packages.example.com/simple/ sandgate-greeting\n"
    "import sandgate_greeting; sandgate_greeting.text"
)


def test_code_that_is_run_obeys_the_policy_as_well(node: object, internet: Internet) -> None:
    with CodeInterpreter.create(network={"deny_out": [ALL_TRAFFIC]}) as sandbox:
        refused = sandbox.run_code(_RUN_CODE_PIP).error
        assert refused is not None and refused.name == "ModuleNotFoundError"
        assert not internet.contacts(destination="93.184.216.50")
        sandbox.update_network({"allow_out": [HOST], "deny_out": [ALL_TRAFFIC]})
        installed = sandbox.run_code(_RUN_CODE_PIP)
        assert installed.text == "hello from pip", installed
