"""Names on any TCP port, resolvers of the policy's own, and policies that only report."""

from __future__ import annotations

from e2b import ALL_TRAFFIC, Sandbox

from e2e.box import DENY_ALL, Box
from internet import ATTACKER, Internet

GITHUB, API = "140.82.121.3", "93.184.216.40"

# Says what the server says first, and what it answers.
_TALK = """python3 -c '
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as sock:
    sock.settimeout(5)
    if sys.argv[2] != "22":
        sock.sendall(b"ping")
    print(sock.recv(100).decode().strip())
' {} {}"""


def talk(box: Box, host: str, port: int) -> str | None:
    done = box.sh(_TALK.format(host, port))
    return None if done.exit_code else done.stdout.strip()


def test_a_name_with_a_port_is_reached_by_its_name_on_that_port(
    box: Box, internet: Internet
) -> None:
    box.names("github.com:22", "*.example.com:5432")
    assert talk(box, "github.com", 22) == "SSH-2.0-small-internet"
    assert talk(box, "api.example.com", 5432) == "ping"
    for host, port in (
        ("github.com", 5432),
        ("api.example.com", 22),
        ("example.com", 5432),
        ("attacker.example.net", 22),
        (ATTACKER, 22),
        (GITHUB, 80),
        (GITHUB, 9999),
    ):
        assert talk(box, host, port) is None, (host, port)
    reached = {(c.destination, c.port) for c in internet.contacts(kind="connection")}
    assert reached == {(GITHUB, 22), (API, 5432)}


def test_a_forged_hosts_file_or_another_name_in_tls_does_not_open_such_a_port(
    box: Box, internet: Internet
) -> None:
    box.names("github.com:22", "api.example.com:5432")
    box.dig("api.example.com")
    forged = f"echo '{ATTACKER} github.com' >> /etc/hosts"
    restored = "sed '/ github.com/d' /etc/hosts > /tmp/h && cat /tmp/h > /etc/hosts"
    box.sh(forged, user="root")
    try:
        assert talk(box, "github.com", 22) is None
    finally:
        box.sh(restored, user="root")
    done = box.sh(f"curl -sS -m 5 --connect-to ::{API}:5432 https://attacker.example.net:5432/")
    assert done.exit_code == 35  # reset in the handshake
    assert not internet.contacts(destination=ATTACKER)


def test_the_resolvers_of_a_policy_are_those_of_the_sdk(box: Box, internet: Internet) -> None:
    network = {"allow_out": ["api.example.com"], "deny_out": DENY_ALL, "dns_servers": ["1.1.1.1"]}
    box.update(network)
    assert box.dig("@1.1.1.1", "api.example.com") == f"NOERROR {API}"
    assert box.dig("@1.1.1.1", "+tcp", "api.example.com") == f"NOERROR {API}"
    assert box.dig("@1.1.1.1", "attacker.example.net") == "REFUSED"
    for other in ("@8.8.8.8", "@9.9.9.9"):
        assert box.dig(other, "api.example.com") == "NONE"
    assert {c.destination for c in internet.contacts(kind="query")} == {"1.1.1.1"}
    info = box.sandbox.get_info().network
    assert info is not None and info["dns_servers"] == ["1.1.1.1"]
    box.update({**network, "dns_servers": []})
    assert box.dig("@1.1.1.1", "api.example.com") == box.dig("api.example.com") == "NONE"
    assert box.fetch("https://api.example.com/", "--resolve", f"api.example.com:443:{API}")
    box.names("api.example.com")
    assert box.dig("api.example.com") == f"NOERROR {API}"


def test_metadata_makes_a_policy_report_only(node: object, internet: Internet) -> None:
    sandbox = Sandbox.create(
        network={"allow_out": ["api.example.com"], "deny_out": [ALL_TRAFFIC]},
        metadata={"sandgate.network-mode": "report"},
    )
    box = Box(sandbox)
    try:
        assert talk(box, "attacker.example.net", 22) == "SSH-2.0-small-internet"
        assert box.fetch("https://attacker.example.net/") is not None
        assert box.sh(_TALK.format("10.66.0.3", 9999)).exit_code
        assert not internet.contacts(destination="10.66.0.3")
    finally:
        sandbox.kill()
