"""Sandboxes trust the node's own authority, by every way that programs look for one."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest
import trustme

from sandgate.templates import Template, TemplateError, load
from sandgate.templates.build import build
from sandgate.templates.node_layer import CA_INSIDE, write_node_layer
from templates.chroots import inside
from templates.tiny import Recorder, definitions

pytestmark = pytest.mark.timeout(600)

BUNDLE = """
name = "root"
[[files]]
path = "/etc/ssl/certs/ca-certificates.crt"
content = "the others\\n"
[[files]]
path = "/usr/local/share/ca-certificates/README"
content = ""
[[files]]
path = "/etc/profile.d/README"
content = ""
"""
LOGIN = """
[[files]]
path = "/etc/profile"
content = 'if [ "$(id -u)" -eq 0 ]; then WHO=root; else WHO=user; fi'
"""


@pytest.fixture
def base(tmp_path: Path) -> Template:
    build(tmp_path, definitions(root=BUNDLE), ["root"], Recorder())
    return load(tmp_path)["root"]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def _pem(authority: trustme.CA) -> bytes:
    return authority.cert_pem.bytes()


def test_the_authority_comes_on_top_of_the_others(
    tmp_path: Path, base: Template, authority: trustme.CA
) -> None:
    layer = write_node_layer(tmp_path, "box.example", _pem(authority), base)
    bundle = (layer / "etc/ssl/certs/ca-certificates.crt").read_bytes()
    assert bundle.startswith(b"the others\n# Sandgate node box.example\n-----BEGIN CERTIFICATE")
    assert _pem(authority).strip() in bundle
    assert (layer / "usr/local/share/ca-certificates/sandgate.crt").stat().st_mode & 0o777 == 0o644


def test_folders_keep_the_owner_and_mode_they_have_in_the_base(
    tmp_path: Path, base: Template, authority: trustme.CA
) -> None:
    (base.layers[0] / "usr/local/share").chmod(0o2775)
    layer = write_node_layer(tmp_path, "box.example", _pem(authority), base)
    modes = {
        str(path.relative_to(layer)): stat.S_IMODE(path.stat().st_mode)
        for path in layer.rglob("*")
        if path.is_dir()
    }
    assert modes.pop("usr/local/share") == 0o2775
    assert set(modes.values()) == {0o755}


def test_without_an_own_authority_the_layer_is_empty(tmp_path: Path, base: Template) -> None:
    assert list(write_node_layer(tmp_path, "box.example", None, base).iterdir()) == []


def test_a_layer_that_is_right_stays_and_another_is_replaced(
    tmp_path: Path, base: Template, authority: trustme.CA
) -> None:
    first = write_node_layer(tmp_path, "box.example", _pem(authority), base).stat().st_ino
    assert write_node_layer(tmp_path, "box.example", _pem(authority), base).stat().st_ino == first
    other = write_node_layer(tmp_path, "box.example", _pem(trustme.CA()), base)
    assert other.stat().st_ino != first
    assert not (tmp_path / ".node-layer.new").exists()


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_login_shells_know_their_user_as_before(tmp_path: Path, shell: str) -> None:
    build(tmp_path, definitions(root=BUNDLE + LOGIN), ["root"], Recorder())
    base = load(tmp_path)["root"]
    layer = write_node_layer(tmp_path, "box.example", None, base)
    for path in ("/usr/bin:/bin", "/nowhere"):  # bash needs no `id`
        command = [f"/bin/{shell}", "-c", f'PATH={path}; . {layer}/etc/profile; echo "$WHO"']
        done = subprocess.run(command, capture_output=True, check=True)
        known = shell == "bash" or path != "/nowhere"
        assert done.stdout == (b"root\n" if known else b"user\n")


@pytest.mark.parametrize(
    ("pem", "complaint"),
    [(b"", "is not PEM"), (b"-----BEGIN CERTIFICATE-----\n!", "is not PEM"), (b"twice", "chain")],
)
def test_what_is_no_single_certificate_is_refused(
    tmp_path: Path, base: Template, authority: trustme.CA, pem: bytes, complaint: str
) -> None:
    given = _pem(authority) + _pem(trustme.CA()) if pem == b"twice" else pem
    with pytest.raises(TemplateError, match=complaint):
        write_node_layer(tmp_path, "box.example", given, base)


@pytest.mark.parametrize(
    "check",
    [
        "openssl verify /srv/leaf.pem",
        "openssl verify -no-CApath -CAfile /etc/ssl/certs/ca-certificates.crt /srv/leaf.pem",
        "openssl verify -no-CAfile -CApath /etc/ssl/certs /srv/leaf.pem",
        f"openssl verify -no-CApath -CAfile {CA_INSIDE} /srv/leaf.pem",
    ],
)
def test_programs_inside_trust_what_the_authority_signed(
    built: dict[str, Template], tmp_path: Path, authority: trustme.CA, check: str
) -> None:
    leaf, scratch = tmp_path / "leaf", tmp_path / "scratch"
    (leaf / "srv").mkdir(parents=True)
    scratch.mkdir()
    certificate = authority.issue_cert("box.example").cert_chain_pems[0]
    (leaf / "srv/leaf.pem").write_bytes(certificate.bytes())
    layer = write_node_layer(tmp_path, "box.example", _pem(authority), built["base"])
    command = ("sh", "-c", check)
    trusted = inside(built["base"], scratch, *command, above=[layer, leaf])
    assert trusted.stdout.strip() == "/srv/leaf.pem: OK", trusted.stderr
    assert inside(built["base"], scratch, *command, above=[leaf]).returncode != 0


def test_python_and_node_inside_trust_the_authority(
    built: dict[str, Template], tmp_path: Path, authority: trustme.CA
) -> None:
    served, scratch = tmp_path / "served", tmp_path / "scratch"
    (served / "srv").mkdir(parents=True)
    scratch.mkdir()
    leaf = authority.issue_cert("localhost")
    (served / "srv/server.pem").write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
    layer = write_node_layer(tmp_path, "box.example", _pem(authority), built["base"])
    script = """
    ip link set lo up
    openssl s_server -quiet -accept 127.0.0.1:4433 -cert /srv/server.pem -www &
    until ss -Hltn sport = :4433 | grep -q .; do sleep 0.05; done
    python -c 'import urllib.request as u; print(u.urlopen("https://localhost:4433/").status)'
    node -e 'fetch("https://localhost:4433/").then(r => console.log(r.status))'
    curl -sS -o /dev/null -w '%{http_code}\\n' https://localhost:4433/
    kill %1
    """
    result = inside(built["base"], scratch, "bash", "-lec", script, above=[layer, served])
    assert result.stdout.split() == ["200", "200", "200"], result.stderr
