"""Three network namespaces for the gateway's tests: sandboxes, the gateway, and the far side.

The sandboxes' namespace has two addresses, one for each sandbox.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from egress.far_side import (
    FAR_ADDRESSES,
    INGRESS,
    INGRESS_PORT,
    LISTED,
    OWN,
    RESOLVER,
    SILENT,
    UPSTREAM,
    FarSide,
)
from internet.namespaces import create, delete, inside, run, set_sysctls
from sandgate.egress.gateway import GatewayConfig
from sandgate.policy import EgressPolicy, Mode, parse_policy

FIRST, SECOND = "198.18.0.16", "198.18.0.17"
"""The sandboxes' addresses."""
GATEWAY = "198.18.0.2"
_FROM_BOXES = 'iifname "boxes"'
_TO_GATEWAY = f"tproxy ip to {GATEWAY}:15001 meta mark set 1 accept"
_TO_DNS = f"tproxy ip to {GATEWAY}:53 meta mark set 1 accept"
_RULES = f"""
table inet lab {{
 chain pre {{
  type filter hook prerouting priority mangle;
  {_FROM_BOXES} tcp dport {{ 22, 80, 81, 443, 444 }} ct state established \\
    socket transparent 1 meta mark set 1 accept
  {_FROM_BOXES} ip daddr {{ {RESOLVER}, {LISTED} }} udp dport 53 {_TO_DNS}
  {_FROM_BOXES} ip daddr {{ {RESOLVER}, {LISTED} }} tcp dport 53 {_TO_DNS}
  {_FROM_BOXES} tcp dport {{ 22, 80, 81, 443, 444 }} {_TO_GATEWAY}
  {_FROM_BOXES} ip daddr {INGRESS} tcp dport {INGRESS_PORT} {_TO_GATEWAY}
  {_FROM_BOXES} tcp dport {{ 22, 53, 80, 81, 443, 444, {INGRESS_PORT} }} reject with tcp reset
 }}
}}
"""


class Lab:
    """The namespaces, the far side and a running gateway."""

    # -X importtime: every import is reported, so that one after the start is seen.
    program: tuple[str, ...] = ("-X", "importtime", "-m", "sandgate.egress")

    def __init__(self, directory: Path) -> None:
        self.boxes, self.gateway, self.far = (f"sgeg{os.getpid()}{part}" for part in "bgf")
        self.control_path = directory / "egress.sock"
        self.decisions_path = directory / "decisions.sock"
        self._log_path = directory / "egress.log"
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.seen = 0
        """Characters of the log that belong to earlier tests."""
        try:
            self._build()
            self.side = FarSide(self.far, self.gateway)
            self._stack.callback(self.side.close)
            self.start_gateway()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take everything down."""
        self.stop_gateway()
        self._stack.close()

    def _build(self) -> None:
        for name in (self.boxes, self.gateway, self.far):
            self._stack.callback(delete, name)
            create(name)
        run("ip", "-n", self.gateway, "link", "add", "boxes", "type", "veth",
            "peer", "name", "eth0", "netns", self.boxes)  # fmt: skip
        run("ip", "-n", self.gateway, "link", "add", "out", "type", "veth",
            "peer", "name", "in", "netns", self.far)  # fmt: skip
        lines = {
            self.boxes: [
                f"addr add {FIRST}/32 dev eth0",
                f"addr add {SECOND}/32 dev eth0",
                "addr add 198.18.0.99/32 dev eth0",
                "link set eth0 up",
                "route add default via 169.254.1.1 dev eth0 onlink",
            ],
            self.gateway: [
                "addr add 169.254.1.1/32 dev boxes",
                "link set boxes up",
                f"addr add {OWN}/24 dev out",
                "link set out up",
                f"addr add {INGRESS}/32 dev lo",
                f"addr add {GATEWAY}/32 dev lo",
                "route add 198.18.0.0/24 dev boxes",
                "route add default via 203.0.113.2",
                "rule add fwmark 1 lookup 100",
                "route add local default dev lo table 100",
            ],
            self.far: [
                "addr add 203.0.113.2/24 dev in",
                f"addr add {UPSTREAM}/24 dev in",
                *(f"addr add {a}/32 dev lo" for a in FAR_ADDRESSES),
                "link set in up",
                "route add 198.18.0.0/16 via 203.0.113.1",
                "route add unreachable 93.184.216.97",
                "route add blackhole 93.184.216.98",
                f"route add blackhole {SILENT}",
            ],
        }
        for name, commands in lines.items():
            for command in commands:
                run("ip", "-n", name, *command.split())
        for name in (self.gateway, self.far):
            set_sysctls(name, ipv4__ip_forward=1)
        with inside(self.gateway):
            subprocess.run(["nft", "-f", "-"], input=_RULES.encode(), check=True, timeout=10)

    # The gateway.

    def start_gateway(self) -> None:
        """Start the gateway and wait until it serves."""
        config = GatewayConfig(
            gateway_address=IPv4Address(GATEWAY),
            ingress_address=IPv4Address(INGRESS),
            https_port=INGRESS_PORT,
            domain="sandgate.localhost",
            control_socket=self.control_path,
            decisions_socket=self.decisions_path,
            sandboxes=IPv4Network("198.18.0.0/16"),
            upstream_dns=(IPv4Address(UPSTREAM),),
            user="nobody",
        )
        self.seen = 0
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", self.gateway, sys.executable, *self.program],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log,
                extra_groups=[4, 24],
            )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(config.to_json().encode())
        self._process.stdin.close()
        deadline = time.monotonic() + 15
        while "serving" not in self.log():
            assert self._process.poll() is None, self.log()[-2000:]
            assert time.monotonic() < deadline, "the gateway did not start"
            time.sleep(0.02)

    def stop_gateway(self) -> None:
        """End the gateway."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def peak_memory(self) -> int:
        """The most memory that the gateway ever used, in KiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    def log(self) -> str:
        """All that the gateway wrote."""
        return self._log_path.read_text(errors="replace")

    def since_start(self) -> str:
        """What the gateway wrote since it serves."""
        return self.log().partition("\nserving\n")[2]

    def decisions(self, **having: object) -> list[dict[str, Any]]:
        """The decisions logged that have these values."""
        log = self.log()[self.seen :].splitlines()
        lines = (json.loads(line) for line in log if line.startswith("{"))
        return [line for line in lines if having.items() <= line.items()]

    def wait_decision(self, **having: object) -> dict[str, Any]:
        """The last decision with these values, waited for."""
        deadline = time.monotonic() + 2
        while not (found := self.decisions(**having)):
            assert time.monotonic() < deadline, (
                f"no decision {having}: {self.since_start()[-2000:]}"
            )
            time.sleep(0.01)
        return found[-1]

    def request(self, **request: object) -> dict[str, Any]:
        """Send one request over the control socket."""
        with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rwb") as stream:
            sock.settimeout(5)
            sock.connect(str(self.control_path))
            stream.write(json.dumps({"id": 1, **request}).encode() + b"\n")
            stream.flush()
            reply: dict[str, Any] = json.loads(stream.readline())
            return reply

    def set_policy(
        self, policy: EgressPolicy, address: str = FIRST, sandbox_id: str = "sandbox"
    ) -> None:
        """Tell the gateway a policy."""
        reply = self.request(
            op="set", sandbox_id=sandbox_id, address=address, policy=policy.to_json()
        )
        assert reply == {"id": 1, "ok": True}

    def allow(
        self,
        *entries: str,
        address: str = FIRST,
        sandbox_id: str = "sandbox",
        dns_servers: list[str] | None = None,
        mode: Mode = Mode.ENFORCE,
    ) -> None:
        """Set a policy that denies everything but `entries`."""
        policy = parse_policy(entries, ["0.0.0.0/0"], dns_servers=dns_servers, mode=mode)
        self.set_policy(policy, address, sandbox_id)

    # What sandboxes do.

    def open(self, kind: int = socket.SOCK_STREAM, source: str = FIRST) -> socket.socket:
        """A socket of a sandbox."""
        with inside(self.boxes):
            sock = socket.socket(socket.AF_INET, kind)
        sock.bind((source, 0))
        sock.settimeout(8)
        return sock

    @contextmanager
    def connect(self, address: str, port: int, source: str = FIRST) -> Iterator[socket.socket]:
        """A connection of a sandbox."""
        with self.open(source=source) as sock:
            sock.connect((address, port))
            yield sock

    @contextmanager
    def tls(self, address: str, name: str | None, port: int = 443) -> Iterator[ssl.SSLSocket]:
        """A TLS connection of a sandbox that shows `name`, its certificate checked against it."""
        context = ssl.create_default_context()
        self.side.ca.configure_trust(context)
        if name is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        with self.connect(address, port) as sock:
            with context.wrap_socket(sock, server_hostname=name) as tls:
                yield tls

    def ask(
        self,
        name: str,
        kind: str = "A",
        *,
        tcp: bool = False,
        source: str = FIRST,
        server: str = RESOLVER,
    ) -> dns.message.Message:
        """Ask the sandbox's resolver, or another one."""
        query = dns.message.make_query(name, kind)
        if tcp:
            with self.connect(server, 53, source) as sock:
                wire = query.to_wire()
                sock.sendall(len(wire).to_bytes(2, "big") + wire)
                size = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
                return dns.message.from_wire(sock.recv(size, socket.MSG_WAITALL))
        with self.open(socket.SOCK_DGRAM, source) as sock:
            sock.settimeout(4)
            sock.sendto(query.to_wire(), (server, 53))
            data, peer = sock.recvfrom(4096)
            assert peer == (server, 53)
            return dns.message.from_wire(data)
