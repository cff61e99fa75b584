"""Puts the model together: the sandbox's namespace, its slot's, and the host's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from attacks.e2b.proxy import PORTS
from attacks.e2b.rules import ALWAYS_DENIED, Config
from internet import UPSTREAM_DNS, namespaces
from internet.held import Held

_GUEST = "169.254.0.21"
GATEWAY = "169.254.0.22"
"""The sandbox's gateway."""
_SLOT, _HOST = "10.11.0.2", "10.11.0.1"
NEIGHBOUR = "10.11.0.66"
"""Another sandbox, as far as the rules see one: an address of the host's side."""


class Model(Held):
    """A context manager: E2B's algorithm around `guest`, with `host` as the way out."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.guest = f"{host}-guest"
        self._slot = f"{host}-slot"
        self._proxy: subprocess.Popen[str] | None = None
        self._config = Config()

    def open(self) -> None:
        """Wire the namespaces and start the proxy."""
        self._wire()
        with namespaces.inside(self._slot):
            _nft(_slot_rules())
        with namespaces.inside(self.host):
            _nft(_host_rules())
        self.start_proxy()

    def close(self) -> None:
        """Remove all but the host's namespace. May be called twice."""
        self._end_proxy()
        for name in (self.guest, self._slot):
            namespaces.delete(name)

    def start_proxy(self) -> None:
        """Start the proxy."""
        here = Path(__file__).resolve().parents[2]
        with namespaces.inside(self.host):
            self._proxy = subprocess.Popen(
                [sys.executable, "-m", "attacks.e2b.proxy", UPSTREAM_DNS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=here,
                env={**os.environ, "PYTHONPATH": str(here)},
            )
        self._hear("ready")

    def set_policy(self, allow: Sequence[str], deny: Sequence[str]) -> None:
        """Replace the policy: the sets in the kernel and what the proxy knows, nothing else."""
        config = Config.of(allow, deny)
        if config == self._config:
            return
        self._config = config
        lines = ["flush set ip slot user_allow", "flush set ip slot user_deny"]
        for name, entries in (("user_allow", config.allow), ("user_deny", config.deny)):
            if entries:
                lines.append(f"add element ip slot {name} {{ {', '.join(entries)} }}")
        with namespaces.inside(self._slot):
            _nft("\n".join(lines))
        assert self._proxy is not None and self._proxy.stdin is not None
        print(json.dumps({"allow": allow, "deny": deny}), file=self._proxy.stdin, flush=True)
        self._hear("set")

    def _hear(self, word: str) -> None:
        assert self._proxy is not None and self._proxy.stdout is not None
        said = self._proxy.stdout.readline().strip()
        assert said == word, f"the model's proxy said {said!r} instead of {word!r}"

    def _end_proxy(self) -> None:
        if self._proxy is not None:
            assert self._proxy.stdin is not None and self._proxy.stdout is not None
            self._proxy.stdin.close()
            try:
                self._proxy.wait(5)
            except subprocess.TimeoutExpired:
                self._proxy.kill()
                self._proxy.wait()
            self._proxy.stdout.close()
            self._proxy = None

    def _wire(self) -> None:
        for name in (self.guest, self._slot):
            namespaces.create(name)
        _link(self.guest, "eth0", f"{_GUEST}/30", self._slot, "tap0", f"{GATEWAY}/30")
        _link(self._slot, "eth0", f"{_SLOT}/24", self.host, "slot0", f"{_HOST}/24")
        for name, gateway in ((self.guest, GATEWAY), (self._slot, _HOST)):
            namespaces.run("ip", "-n", name, "route", "add", "default", "via", gateway)
        namespaces.run("ip", "-n", self.host, "address", "add", f"{NEIGHBOUR}/32", "dev", "lo")
        for name in (self._slot, self.host):
            namespaces.set_sysctls(name, ipv4__ip_forward=1)
        # The virtual machine has IPv6, its namespace has none.
        namespaces.set_sysctls(self._slot, ipv6__conf__all__disable_ipv6=1)


def _link(near: str, name: str, address: str, far: str, far_name: str, far_address: str) -> None:
    namespaces.run(
        *("ip", "link", "add", name, "netns", near, "type", "veth"),
        *("peer", "name", far_name, "netns", far),
    )
    for namespace, interface, own in ((near, name, address), (far, far_name, far_address)):
        ip = ("ip", "-n", namespace)
        namespaces.run(*ip, "address", "add", own, "dev", interface)
        namespaces.run(*ip, "link", "set", interface, "up")


def _nft(text: str) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=text, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def _slot_rules() -> str:
    denied = ", ".join(ALWAYS_DENIED)
    interval = "type ipv4_addr; flags interval; auto-merge;"
    return f"""
    table ip slot {{
        set platform_deny {{ {interval} elements = {{ {denied} }} }}
        set user_allow {{ {interval} }}
        set user_deny {{ {interval} }}
        chain prerouting {{
            type filter hook prerouting priority mangle
            iifname != "tap0" accept
            ct state established,related accept
            ip daddr @platform_deny drop
            meta l4proto != tcp ip daddr @user_allow accept
            meta l4proto != tcp ip daddr @user_deny drop
        }}
        chain postrouting {{
            type nat hook postrouting priority srcnat
            oifname "eth0" ip saddr {_GUEST} snat to {_SLOT}
        }}
    }}"""


def _host_rules() -> str:
    return f"""
    table ip host {{
        chain prerouting {{
            type nat hook prerouting priority dstnat
            iifname "slot0" tcp dport 80 redirect to :{PORTS[80]}
            iifname "slot0" tcp dport 443 redirect to :{PORTS[443]}
            iifname "slot0" meta l4proto tcp redirect to :{PORTS[0]}
        }}
        chain postrouting {{
            type nat hook postrouting priority srcnat
            oifname "up*" masquerade
        }}
    }}"""
