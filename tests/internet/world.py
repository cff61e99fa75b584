"""`Internet`: brings the small internet up, connects namespaces to it, and takes it down."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from internet import namespaces
from internet.contacts import Contact, Contacts
from internet.held import Held
from internet.names import SILENT, UNREACHABLE, Record

_START_SECONDS = 20
_DEAD_HOSTS = f"""
table ip dead {{
    chain input {{
        type filter hook input priority filter
        ip daddr {UNREACHABLE} reject with icmp type host-unreachable
        ip daddr {SILENT} drop
    }}
}}
"""
_count = itertools.count(1)


class Internet(Held):
    """A context manager. Everything it makes carries the process id and goes at its end."""

    def __init__(self) -> None:
        self._prefix = f"sgt{os.getpid()}-{next(_count)}"
        self.namespace = f"{self._prefix}-inet"
        """Name of the namespace that plays the internet."""
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self._prefix}-"))
        self.ca_file = self.directory / "ca.pem"
        """Certificate of the CA that all of the internet's HTTPS servers are signed by."""
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self.attached: list[str] = []
        """Names of the namespaces made by `attach`."""

    def open(self) -> None:
        """Set everything up; on entering."""
        atexit.register(self.close)
        self._start()

    def close(self) -> None:
        """Remove everything. May be called twice."""
        atexit.unregister(self.close)
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
            self._process = None
        for name in (*self.attached, self.namespace):
            namespaces.delete(name)
        shutil.rmtree(self.directory, ignore_errors=True)

    def attach(self, label: str = "node") -> str:
        """Make a namespace whose only way out leads here. Returns its name.

        Its uplink has an address of TEST-NET-2, and an IPv6 address too, so that IPv6 would leak
        if it could.
        """
        name = f"{self._prefix}-{label}"
        namespaces.create(name)
        self.attached.append(name)
        index = len(self.attached)
        near, far = f"198.51.100.{index * 4 + 2}", f"198.51.100.{index * 4 + 1}"
        near6, far6 = f"2001:db8:{index}::2", f"2001:db8:{index}::1"
        link = f"up{index}"
        namespaces.run(
            *("ip", "link", "add", link, "netns", name, "type", "veth"),
            *("peer", "name", link, "netns", self.namespace),
        )
        for namespace, address, address6 in (
            (name, near, near6),
            (self.namespace, far, far6),
        ):
            ip = ("ip", "-n", namespace)
            namespaces.run(*ip, "address", "add", f"{address}/30", "dev", link)
            namespaces.run(*ip, "address", "add", f"{address6}/64", "dev", link, "nodad")
            namespaces.run(*ip, "link", "set", link, "up")
        namespaces.run("ip", "-n", name, "route", "add", "default", "via", far)
        namespaces.run("ip", "-n", name, "-6", "route", "add", "default", "via", far6)
        self._ask(op="sniff", interface=link)
        return name

    def uplink_address(self, name: str) -> str:
        """The address an attached namespace has towards the internet."""
        return f"198.51.100.{(self.attached.index(name) + 1) * 4 + 2}"

    def contacts(self, **wanted: object) -> Contacts:
        """What has arrived since the last reset; narrowed down as by `Contacts.where`."""
        arrived = self._ask(op="contacts")
        return Contacts([Contact(**contact) for contact in arrived]).where(**wanted)

    def reset(self) -> None:
        """Forget all contacts."""
        self._ask(op="reset")

    def set_name(self, name: str, record: Record) -> None:
        """Change what DNS answers for a name from now on."""
        self._ask(op="name", name=name, record=record.to_json())

    def delay_dns(self, seconds: float) -> None:
        """Let every answer to a query over UDP take its time, from now on."""
        self._ask(op="dns delay", seconds=seconds)

    def publish(self, host: str, directory: Path) -> None:
        """Serve a directory's files at `http(s)://<host>/`."""
        self._ask(op="publish", host=host, directory=str(directory))

    def _start(self) -> None:
        name = self.namespace
        namespaces.create(name)
        namespaces.set_sysctls(
            name,
            ipv4__icmp_ratelimit=0,
            ipv4__icmp_msgs_per_sec=100_000,
            ipv4__conf__all__rp_filter=0,
            ipv4__conf__default__rp_filter=0,
        )
        # Every address that is no link's is this namespace's own. Not in the table `local`, which
        # is asked before the links' routes.
        for family, everything in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
            route = ("local", everything, "dev", "lo", "table", "main")
            namespaces.run("ip", "-n", name, family, "route", "add", *route)
        control = str(self.directory / "control.sock")
        here = Path(__file__).resolve().parent.parent
        with namespaces.inside(name):
            namespaces.run("nft", _DEAD_HOSTS)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "internet.server", control],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(here)},
                cwd=here,
            )
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _START_SECONDS)[0]:
            raise RuntimeError(f"the small internet did not start within {_START_SECONDS} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the small internet ended with status {self._process.wait()}")
        self.ca_file.write_text(json.loads(line)["ca"])
        self._control = socket.socket(socket.AF_UNIX)
        self._control.settimeout(10)
        self._control.connect(control)

    def _ask(self, **request: object) -> Any:
        assert self._control is not None, "the small internet is not up"
        self._control.sendall(json.dumps(request).encode() + b"\n")
        reply = b""
        while not reply.endswith(b"\n"):
            piece = self._control.recv(1 << 20)
            if not piece:
                raise RuntimeError("the small internet has gone away")
            reply += piece
        return json.loads(reply)
