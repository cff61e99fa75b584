"""The small internet itself: what the end-to-end tests take for granted."""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest

from internet import ATTACKER, Internet, Record, namespaces
from internet.names import PRIVATE, SILENT, UNREACHABLE


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Internet, str]]:
    with Internet() as internet:
        yield internet, internet.attach()


@pytest.fixture
def internet(world: tuple[Internet, str]) -> Iterator[Internet]:
    """The internet, seen from a namespace whose only way out leads there."""
    world[0].reset()
    with namespaces.inside(world[1]):
        yield world[0]


def _ask(name: str, kind: str = "A", server: str = "8.8.8.8") -> dns.message.Message:
    query = dns.message.make_query(name, kind, use_edns=False)
    return dns.query.udp_with_fallback(query, server, timeout=2)[0]


def _addresses(name: str, server: str = "8.8.8.8") -> list[str]:
    answers = _ask(name, server=server).answer
    return [str(item) for rrset in answers for item in rrset if rrset.rdtype == dns.rdatatype.A]


@contextmanager
def _connected(address: str, port: int) -> Iterator[socket.socket]:
    with socket.create_connection((address, port), timeout=2) as connection:
        yield connection


@pytest.mark.parametrize("server", ["8.8.8.8", "1.1.1.1", "9.9.9.9"])
def test_dns_answers_at_several_addresses_and_counts_every_query(
    internet: Internet, server: str
) -> None:
    assert _addresses("Example.COM", server) == ["93.184.216.34"]
    (query,) = internet.contacts(kind="query")
    assert (query.destination, query.name) == (server, "example.com")
    assert query.detail == {"type": "A", "odd": True}  # it was asked as Example.COM


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("alias.example.com", ["93.184.216.40"]),
        ("a.b.github.com", ["140.82.121.6"]),
        ("github.com", ["140.82.121.3"]),
        ("several.example.com", [UNREACHABLE, "93.184.216.41"]),
        ("private.example.com", ["10.66.0.3"]),
        ("loop.example.com", []),
        ("v6.example.com", []),
    ],
)
def test_dns_knows_chains_wildcards_dead_and_private_answers(
    internet: Internet, name: str, addresses: list[str]
) -> None:
    assert _addresses(name) == addresses


def test_dns_says_nxdomain_and_answers_large_records_over_tcp(internet: Internet) -> None:
    assert _ask("nosuch.example.com").rcode() == dns.rcode.NXDOMAIN
    query = dns.message.make_query("large.example.com", "TXT", use_edns=False)
    assert dns.query.udp(query, "8.8.8.8", timeout=2).flags & dns.flags.TC
    assert len(_ask("large.example.com", "TXT").to_wire()) > 3000
    with_edns = dns.message.make_query("large.example.com", "TXT", use_edns=0, payload=1232)
    assert len(dns.query.tcp(with_edns, "8.8.8.8", timeout=2).to_wire(max_size=65535)) > 3000
    assert [c.protocol for c in internet.contacts(name="large.example.com")] == [
        "udp",
        "udp",
        "tcp",
        "tcp",
    ]


def test_a_name_can_change_its_answer(internet: Internet) -> None:
    assert _addresses("rebinding.example.com") == ["93.184.216.43"]
    assert _addresses("rebinding.example.com") == ["10.66.0.3"]
    internet.set_name("changing.example.com", Record(addresses=("1.2.3.4",)))
    assert _addresses("changing.example.com") == ["1.2.3.4"]
    internet.set_name("changing.example.com", Record(addresses=("1.2.3.5",)))
    assert _addresses("changing.example.com") == ["1.2.3.5"]


def test_http_tells_what_it_saw_and_keeps_the_connection(internet: Internet) -> None:
    client = http.client.HTTPConnection(ATTACKER, timeout=2)
    for path in ("/one", "/two"):
        client.request("POST", path, body=b"12345", headers={"Host": "api.example.com"})
        body = client.getresponse().read().decode()
        assert f'"path": "{path}"' in body and '"body_bytes": 5' in body and ATTACKER in body
    client.close()
    first, second = internet.contacts(kind="request")
    assert first.destination == ATTACKER and first.name == "api.example.com"
    assert first.detail["connection"] == second.detail["connection"]
    assert "Host: api.example.com" in first.detail["raw"]
    assert len(internet.contacts(kind="connection")) == 1


@pytest.mark.parametrize("name", ["api.example.com", "deep.down.mydomain.com"])
def test_https_has_a_certificate_for_every_name(internet: Internet, name: str) -> None:
    context = ssl.create_default_context(cafile=str(internet.ca_file))
    with (
        _connected(_addresses(name)[0], 443) as plain,
        context.wrap_socket(plain, server_hostname=name) as tls,
    ):
        tls.sendall(b"GET / HTTP/1.0\r\nHost: other.example.com\r\n\r\n")
        reply = tls.recv(4096)
    assert f'"sni": "{name}"'.encode() in reply and b'"host": "other.example.com"' in reply
    assert internet.contacts(kind="connection", port=443)[0].name == name


def test_https_by_address_answers_as_the_real_one_does(internet: Internet) -> None:
    context = ssl.create_default_context(cafile=str(internet.ca_file))
    client = http.client.HTTPSConnection("1.1.1.1", timeout=2, context=context)
    client.request("GET", "/")
    assert client.getresponse().status == 301
    client.close()


def test_published_files_are_served(internet: Internet, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "file").write_bytes(b"content")
    internet.publish("packages.example.com", tmp_path)
    for path, status, body in (
        ("/pool/file", 200, b"content"),
        ("/../etc/passwd", 404, b"not found\n"),
    ):
        client = http.client.HTTPConnection("93.184.216.50", timeout=2)
        client.request("GET", path, headers={"Host": "packages.example.com"})
        reply = client.getresponse()
        assert (reply.status, reply.read()) == (status, body)
        client.close()


def test_tcp_services_echo_speak_first_or_wait_for_the_half_close(internet: Internet) -> None:
    with _connected("1.2.3.4", 5432) as echo:
        echo.sendall(b"ping")
        assert echo.recv(10) == b"ping"
    with _connected("140.82.121.3", 22) as ssh:
        assert ssh.recv(100).startswith(b"SSH-2.0-")
    with _connected("1.2.3.4", 11371) as keys:
        keys.sendall(b"x" * 1000)
        keys.shutdown(socket.SHUT_WR)
        assert keys.recv(100) == b"received 1000 bytes\n"


@pytest.mark.parametrize("address", ["9.9.9.9", *PRIVATE])
def test_every_address_echoes_datagrams_from_itself(internet: Internet, address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(2)
        client.connect((address, 9999))
        client.send(b"ping")
        assert client.recv(10) == b"ping"
    (packet,) = internet.contacts(kind="packet", protocol="udp")
    assert (packet.destination, packet.port) == (address, 9999)


def test_bare_syns_pings_and_ipv6_are_seen(internet: Internet) -> None:
    with socket.socket() as client:
        assert client.connect_ex(("192.168.7.7", 4444)) != 0  # nothing listens on that port
    with pytest.raises(OSError):
        socket.create_connection((SILENT, 443), timeout=0.1)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(2)
        raw.sendto(bytes.fromhex("0800f7ff00000000"), (ATTACKER, 0))
        assert raw.recv(100)[20] == 0  # echo reply
    with socket.create_connection(("2001:4860:4860::8888", 8080), timeout=2) as ipv6:
        ipv6.sendall(b"x")
    packets = internet.contacts(kind="packet")
    assert packets.where(protocol="tcp", destination="192.168.7.7", port=4444)
    assert packets.where(protocol="tcp", destination=SILENT, port=443)
    assert packets.where(protocol="icmp", destination=ATTACKER)
    assert packets.where(protocol="ipv6", destination="2001:4860:4860::8888")


def test_an_unreachable_address_is_refused_at_once(internet: Internet) -> None:
    started = time.monotonic()
    for _ in range(20):
        with pytest.raises(OSError, match="No route to host"):
            socket.create_connection((UNREACHABLE, 443), timeout=2)
    assert time.monotonic() - started < 1


def test_a_large_transfer_is_one_contact(internet: Internet) -> None:
    client = http.client.HTTPConnection("1.2.3.4", timeout=5)
    client.request("GET", "/bytes/20000000")
    assert len(client.getresponse().read()) == 20_000_000
    client.close()
    assert len(internet.contacts(kind="packet", protocol="tcp")) == 1


def test_nothing_is_left_behind() -> None:
    with Internet() as internet:
        names = [internet.namespace, internet.attach("a"), internet.attach("b")]
        directory = internet.directory
        assert all(name in namespaces.run("ip", "netns") for name in names)
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert not [name for name in names if name in listed]
    assert not directory.exists()
