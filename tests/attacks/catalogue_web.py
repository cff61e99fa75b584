"""Attacks by what is shown to the gate on ports 80 and 443."""

from __future__ import annotations

from attacks.attack import (
    OPEN,
    SITE,
    SITE_ADDRESS,
    TRAP_ADDRESS,
    TRAPS,
    Attack,
    Group,
    Verdict,
)
from internet import ATTACKER

_EVIL = "attacker.example.net"
_PASSES = Verdict.PASSES


def _tls(title: str, *names: str, theirs: Verdict = Verdict.REFUSED, **how: object) -> Attack:
    """A ClientHello to the attacker's address."""
    arguments = {"address": ATTACKER, "names": names, **how}
    return Attack(title, "tls.hello", arguments, theirs=theirs)


def _raw(title: str, text: str, theirs: Verdict = _PASSES, address: str = SITE_ADDRESS) -> Attack:
    """Text to port 80 of the allowed site, that it could read as a request for another."""
    arguments = {"address": address, "text": text.replace("\n", "\r\n").replace("␊", "\n")}
    return Attack(title, "web.raw", arguments, theirs=theirs)


SPOOFED = Group(
    "Another address, another name",
    (
        Attack(
            "an allowed name is shown to the attacker's address: TLS",
            "tls.handshake",
            {"address": ATTACKER, "name": SITE, "host": SITE},
            note="both dial the name, not the address",
        ),
        Attack(
            "an allowed name is shown to the attacker's address: HTTP",
            "web.raw",
            {"address": ATTACKER, "text": f"GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n"},
        ),
        Attack(
            "`curl --resolve` to the attacker's address",
            "tls.curl_resolve",
            {"name": SITE, "address": ATTACKER},
        ),
        Attack(
            "`/etc/hosts` to the attacker's address",
            "tls.hosts_file",
            {"name": SITE, "address": ATTACKER},
        ),
        Attack(
            "the attacker's name is shown to an allowed site's address: TLS",
            "tls.handshake",
            {"address": SITE_ADDRESS, "name": _EVIL, "host": _EVIL},
        ),
        _tls("name with an allowed one as its beginning", f"{SITE}.{_EVIL}"),
        _tls("name with an allowed one as its end", f"evil{SITE}"),
        _tls("the apex of an allowed wildcard", TRAPS),
        _tls("NUL behind an allowed name", f"{SITE}\0.{_EVIL}"),
        _tls("a wildcard as the name", "*"),
        _tls("allowed name on another port", SITE, port=8443),
        Attack(
            "allowed name as Host on another port",
            "web.raw",
            {"address": ATTACKER, "port": 8080, "text": f"GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n"},
        ),
    ),
)

HELLO = Group(
    "ClientHello",
    (
        _tls("no server name"),
        _tls("two names in one extension", SITE, _EVIL),
        _tls("two extensions with a name each", SITE, _EVIL, extensions=2),
        _tls("an address as the name", ATTACKER),
        _tls("encrypted ClientHello with a public outer name", "cloudflare-ech.com", ech=True),
        _tls("split over TCP segments", _EVIL, segment=40),
        _tls("split over TLS records", _EVIL, record=24),
        _tls("split over both, one byte a record", _EVIL, record=1, segment=100),
        _tls("16 KiB", _EVIL, padding=15_900),
        _tls("60 KiB in several records", _EVIL, padding=60_000),
        Attack(
            "a second ClientHello behind one with an allowed name",
            "tls.two_hellos",
            {"address": ATTACKER, "first": SITE, "second": _EVIL},
        ),
        Attack(
            "something else than TLS on port 443",
            "tls.not_tls",
            {"address": ATTACKER, "text": "SSH-2.0-stolen\r\n"},
        ),
        Attack(
            "one byte a second, to keep the gate busy: TLS",
            "tls.drip",
            {"address": ATTACKER, "name": _EVIL, "seconds": 1, "patience": 12},
            theirs=_PASSES,
            long=True,
            note="E2B waits without a limit; Sandgate 5 s",
        ),
        Attack(
            "one byte a second, to keep the gate busy: HTTP",
            "web.drip",
            {"address": ATTACKER, "name": _EVIL, "seconds": 1, "patience": 12},
            theirs=_PASSES,
            long=True,
        ),
        Attack(
            "another Host inside TLS to an allowed name (domain fronting)",
            "tls.handshake",
            {"address": SITE_ADDRESS, "name": SITE, "host": _EVIL},
            ours=_PASSES,
            theirs=_PASSES,
            note="TLS is not opened: the allowed site decides",
        ),
    ),
)

REQUESTS = Group(
    "HTTP requests",
    (
        Attack(
            "another host on a kept-alive connection",
            "web.kept_alive",
            {"address": SITE_ADDRESS, "first": SITE, "second": _EVIL},
            theirs=_PASSES,
        ),
        Attack(
            "another host in a pipelined request",
            "web.pipelined",
            {"address": SITE_ADDRESS, "first": SITE, "second": _EVIL},
            theirs=_PASSES,
        ),
        Attack(
            "another host in a request split between segments",
            "web.split_between",
            {"address": SITE_ADDRESS, "first": SITE, "second": _EVIL},
            theirs=_PASSES,
        ),
        _raw(
            "smuggling: Content-Length and Transfer-Encoding",
            f"POST / HTTP/1.1\nHost: {SITE}\nContent-Length: 4\n"
            "Transfer-Encoding: chunked\n\n0\n\n{attack}",
        ),
        _raw(
            "smuggling: a coding that only some read as chunked",
            f"POST / HTTP/1.1\nHost: {SITE}\nContent-Length: 200\n"
            "Transfer-Encoding: xchunked\n\n0\n\n{attack}",
        ),
        _raw(
            "smuggling: Transfer-Encoding with a space before the colon",
            f"POST / HTTP/1.1\nHost: {SITE}\nTransfer-Encoding : chunked\n\n0\n\n{{attack}}",
            theirs=Verdict.REFUSED,
        ),
        Attack(
            "smuggling: a chunk size that overflows",
            "web.chunked",
            {"address": SITE_ADDRESS, "name": SITE, "size_line": "0" * 20 + "\r\n\r\n"},
            theirs=_PASSES,
        ),
        Attack(
            "smuggling: a chunk that ends with a bare LF",
            "web.chunked",
            {"address": SITE_ADDRESS, "name": SITE, "size_line": "0\r\nX: y\n\r\n"},
            theirs=_PASSES,
        ),
        _raw(
            "two Host lines",
            f"GET / HTTP/1.1\nHost: {SITE}\nHost: {_EVIL}\n\n",
            theirs=Verdict.REFUSED,
        ),
        _raw(
            "a second Host line after 4 KiB",
            f"GET / HTTP/1.1\nHost: {SITE}\nX: {{big}}\nHost: {_EVIL}\n\n",
        ),
        _raw(
            "absolute form with an allowed name, another Host",
            f"GET http://{SITE}/ HTTP/1.1\nHost: {_EVIL}\n\n",
        ),
        _raw(
            "absolute form with another name, an allowed Host",
            f"GET http://{_EVIL}/ HTTP/1.1\nHost: {SITE}\n\n",
            theirs=Verdict.REFUSED,
            address=ATTACKER,
        ),
        _raw(
            "a folded line that hides a Host",
            f"GET / HTTP/1.1\nX: y\n Host: {_EVIL}\nHost: {SITE}\n\n",
        ),
        _raw(
            "a request behind bare LFs",
            f"GET / HTTP/1.1\nHost: {SITE}\nX: y␊␊{{attack}}",
        ),
        _raw(
            "NUL in Host",
            f"GET / HTTP/1.1\nHost: {SITE}\0.{_EVIL}\n\n",
            theirs=Verdict.REFUSED,
        ),
        _raw("no Host (HTTP/1.0)", "GET / HTTP/1.0\n\n", Verdict.REFUSED, ATTACKER),
        _raw(
            "CONNECT",
            f"CONNECT {_EVIL}:443 HTTP/1.1\nHost: {SITE}\n\n",
            Verdict.REFUSED,
            ATTACKER,
        ),
        Attack(
            "HTTP/2 by prior knowledge",
            "web.http2",
            {"address": ATTACKER, "authority": SITE},
        ),
        _raw(
            "upgrade to h2c",
            f"GET / HTTP/1.1\nHost: {SITE}\nConnection: Upgrade, HTTP2-Settings\n"
            "Upgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\n\n",
        ),
        Attack(
            "a request behind a WebSocket upgrade that is not granted",
            "web.after_upgrade",
            {"address": SITE_ADDRESS, "name": SITE, "host": _EVIL},
            theirs=_PASSES,
        ),
        Attack(
            "something else than HTTP on port 80",
            "packets.tcp",
            {"address": ATTACKER, "port": 80, "text": "SSH-2.0-stolen\r\n"},
        ),
    ),
)


def _trap(label: str, title: str, theirs: Verdict = Verdict.REFUSED, **how: object) -> Attack:
    """An allowed name whose owner leads it inside. Without a gate, the address is dialled."""
    arguments = {"label": label, "zone": TRAPS, "address": TRAP_ADDRESS, **how}
    return Attack(f"an allowed name leads to {title}", "names.visit", arguments, theirs=theirs)


REBINDING = Group(
    "Rebinding",
    (
        _trap("private", "a private address"),
        _trap("shared", "a shared address (100.64.0.0/10)"),
        _trap("metadata", "the cloud's metadata service"),
        _trap("loopback", "127.0.0.1"),
        _trap("zero", "0.0.0.0, which is the machine itself", _PASSES),
        _trap("own-{place}", "the machine's own public address", _PASSES),
        _trap("benchmark", "198.18.0.0/15", _PASSES),
        _trap("protocol", "192.0.0.0/24", _PASSES),
        _trap("nat64", "a private address inside NAT64", _PASSES),
        _trap("6to4", "a private address inside 6to4", _PASSES),
        _trap("mapped", "a private address as an IPv4-mapped one"),
        _trap("alias", "a private address by an alias"),
        _trap("outside", "a private address by an alias out of the allowed names"),
        _trap(
            "changing-{place}", "a public address when asked, a private one when dialled", warm=True
        ),
        _trap("mixed", "a private and a public address"),
        Attack(
            "no restriction: private addresses by number",
            "names.straight",
            {"address": "10.66.0.3"},
            policy=OPEN,
        ),
    ),
)

GROUPS = (SPOOFED, HELLO, REQUESTS, REBINDING)
