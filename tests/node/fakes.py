"""The other processes of a node, in memory. They keep what they are told, and fail on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from sandgate.accounts import OPERATOR, Caller
from sandgate.egress.client import EgressUnavailable
from sandgate.egress.table import SandboxEntry
from sandgate.envd.config import EnvdConfig
from sandgate.ingress.client import IngressError
from sandgate.ingress.routes import Route
from sandgate.node.admission import Readings
from sandgate.node.catalogue import TemplateCatalogue
from sandgate.node.node import Node
from sandgate.node.parts import Parts
from sandgate.node.sandbox import CreateRequest
from sandgate.policy import EgressPolicy
from sandgate.runtime.client import LauncherError
from sandgate.runtime.protocol import Launched, SandboxSpec, Usage
from sandgate.settings import Settings
from sandgate.store import NetworkConfig, Store
from sandgate.templates.store import Manifest

ADDRESS = IPv4Address("198.18.0.16")
ME = Caller(OPERATOR)
USES = Usage(cpu_ns=0, memory=1 << 20, cache=2 << 20, disk=3 << 20, disk_size=1 << 30)


@dataclass
class FakeLauncher:
    """Keeps sandboxes as entries of a dictionary."""

    log: list[str]
    connected: bool = True
    sandboxes: dict[str, Launched] = field(default_factory=dict)
    specs: dict[str, SandboxSpec] = field(default_factory=dict)
    configs: dict[str, EnvdConfig] = field(default_factory=dict)
    policies: dict[str, EgressPolicy] = field(default_factory=dict)
    on_exit: Callable[[str], Awaitable[None]] | None = None
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    """By operation: raised one after the other."""
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    """By operation: what it waits for."""
    kept: set[str] = field(default_factory=set)
    """Sandboxes with a disk and no processes."""
    snapshots: set[str] = field(default_factory=set)
    slots: int = 0
    uses: Usage = USES
    """What every sandbox uses."""

    async def start(self) -> None:
        await self._step("start")

    async def create(
        self,
        spec: SandboxSpec,
        config: EnvdConfig,
        on_address: Callable[[IPv4Address], None] | None = None,
    ) -> Launched:
        if on_address is not None:
            on_address(ADDRESS + self.slots)
        await self._step("create")
        if spec.kept and spec.sandbox_id not in self.kept:
            raise LauncherError(f"no disk {spec.sandbox_id}")
        self.kept.discard(spec.sandbox_id)
        launched = Launched(spec.sandbox_id, self.slots, ADDRESS + self.slots, 4000 + self.slots)
        self.slots += 1
        self.sandboxes[spec.sandbox_id] = launched
        self.specs[spec.sandbox_id] = spec
        self.configs[spec.sandbox_id] = config
        self.policies[spec.sandbox_id] = spec.policy
        return launched

    async def kill(self, sandbox_id: str) -> None:
        await self._step("kill")
        self.kept.discard(sandbox_id)
        self.sandboxes.pop(sandbox_id, None)
        self.policies.pop(sandbox_id, None)

    async def set_policy(self, sandbox_id: str, policy: EgressPolicy) -> None:
        await self._step("set_policy")
        self._find(sandbox_id)
        self.policies[sandbox_id] = policy

    async def pause(self, sandbox_id: str) -> None:
        await self._step("pause")
        self.sandboxes[sandbox_id] = replace(self._find(sandbox_id), paused=True)

    async def resume(self, sandbox_id: str) -> None:
        await self._step("resume")
        self.sandboxes[sandbox_id] = replace(self._find(sandbox_id), paused=False)

    async def park(self, sandbox_id: str) -> None:
        await self._step("park")
        if sandbox_id not in self.kept:
            self._find(sandbox_id)
            del self.sandboxes[sandbox_id]
            self.kept.add(sandbox_id)

    async def snapshot(self, sandbox_id: str, snapshot_id: str) -> None:
        await self._step("snapshot")
        if sandbox_id not in self.kept:
            self._find(sandbox_id)
        self.snapshots.add(snapshot_id)

    async def clone(self, snapshot_id: str, sandbox_id: str) -> None:
        await self._step("clone")
        if snapshot_id not in self.snapshots:
            raise LauncherError(f"no snapshot {snapshot_id}")
        self.kept.add(sandbox_id)

    async def drop_snapshot(self, snapshot_id: str) -> None:
        await self._step("drop_snapshot")
        self.snapshots.discard(snapshot_id)

    async def images(self) -> tuple[set[str], set[str]]:
        await self._step("images")
        return set(self.kept), set(self.snapshots)

    async def usage(self, sandbox_ids: Sequence[str]) -> dict[str, Usage]:
        await self._step("usage")
        return {name: self.uses for name in sandbox_ids if name in self.sandboxes}

    async def running(self) -> list[Launched]:
        await self._step("running")
        return list(self.sandboxes.values())

    def _find(self, sandbox_id: str) -> Launched:
        if sandbox_id not in self.sandboxes:
            raise LauncherError(f"no sandbox {sandbox_id}")
        return self.sandboxes[sandbox_id]

    async def close(self) -> None:
        self.log.append("launcher.close")

    async def die(self, sandbox_id: str) -> None:
        """The sandbox's first process ends by itself."""
        del self.sandboxes[sandbox_id]
        assert self.on_exit is not None
        await self.on_exit(sandbox_id)

    async def _step(self, operation: str) -> None:
        self.log.append(f"launcher.{operation}")
        await _step(operation, self.gates, self.failures)


@dataclass
class FakeGate:
    """Both gates: what they were told, by address and by sandbox."""

    log: list[str]
    connected: bool = True
    entries: dict[IPv4Address, SandboxEntry] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)

    async def start(self) -> None:
        await _step("start", self.gates, self.failures)

    async def close(self) -> None:
        return None


@dataclass
class FakeEgress(FakeGate):
    """The gateway's table."""

    async def set(self, entry: SandboxEntry) -> None:
        self.log.append("egress.set")
        await _step("set", self.gates, self.failures)
        self.entries[entry.address] = entry

    async def remove(self, address: IPv4Address) -> None:
        self.log.append("egress.remove")
        await _step("remove", self.gates, self.failures)
        self.entries.pop(address, None)

    async def explain(self, policy: EgressPolicy, target: str) -> dict[str, Any]:
        raise AssertionError("nothing is explained here")


@dataclass
class FakeIngress(FakeGate):
    """The proxy's routes."""

    async def add(self, route: Route) -> None:
        self.log.append("ingress.add")
        await _step("add", self.gates, self.failures)
        self.routes[route.sandbox_id] = route

    async def remove(self, sandbox_id: str) -> None:
        self.log.append("ingress.remove")
        await _step("remove", self.gates, self.failures)
        self.routes.pop(sandbox_id, None)


async def _step(
    operation: str, gates: dict[str, asyncio.Event], failures: dict[str, list[Exception]]
) -> None:
    await asyncio.sleep(0)
    if operation in gates:
        await gates[operation].wait()
    if failures.get(operation):
        raise failures[operation].pop(0)


@dataclass
class FakeGauge:
    """A machine that has as much left as a test says."""

    readings: Readings = field(default_factory=Readings)
    times: int = 0
    """How often it was asked."""

    def read(self, sandboxes: int) -> Readings:
        self.times += 1
        return self.readings


@dataclass
class World:
    """A node over fakes, on a data directory of its own."""

    data_dir: Path
    settings: Settings
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.launcher = FakeLauncher(self.log)
        self.egress = FakeEgress(self.log)
        self.ingress = FakeIngress(self.log)
        self.gauge = FakeGauge()
        self.store = Store(self.data_dir / "store.db")
        self.node = self.new_node()

    def new_node(self) -> Node:
        """A node as after a restart of the control process."""
        parts = Parts(
            settings=self.settings,
            store=self.store,
            templates=TemplateCatalogue(self.data_dir),
            launcher=self.launcher,
            egress=self.egress,
            ingress=self.ingress,
            gauge=self.gauge,
        )
        self.node = Node(parts)
        self.launcher.on_exit = self.node.on_exit
        return self.node

    async def restart(self) -> Node:
        """End the control process, and start another."""
        await self.node.close()
        self.new_node()
        await self.node.start()
        return self.node

    def open_gates(self) -> None:
        """Let all go on that a test made wait."""
        for part in (self.launcher, self.egress, self.ingress):
            for gate in part.gates.values():
                gate.set()

    def leftovers(self) -> list[object]:
        """All that is known of sandboxes anywhere."""
        launcher, found = self.launcher, list[object]()
        for part in (launcher.sandboxes, launcher.kept, self.egress.entries, self.ingress.routes):
            found += list(part)
        return found + [record.sandbox_id for record in self.store.all()]


def make_template(data_dir: Path, name: str, *aliases: str) -> None:
    """What a built template looks like from outside."""
    directory = data_dir / "templates" / name
    (directory / "rootfs").mkdir(parents=True)
    Manifest(
        name=name,
        aliases=list(aliases),
        build_id="b1",
        parent=None,
        parent_build_id=None,
        definition_hash="",
        built_at="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        size_bytes=1,
        packages={},
    ).write(directory / "manifest.json")


def make_world(data_dir: Path, **settings: Any) -> World:
    """A world with the usual templates. `settings` go into the node's settings."""
    make_template(data_dir, "base")
    make_template(data_dir, "code-interpreter-v1", "interpreter")
    return World(data_dir, Settings(data_dir=data_dir, **settings))


@asynccontextmanager
async def running_world(data_dir: Path) -> AsyncIterator[World]:
    """A world whose node is started, and closed in the end."""
    made = make_world(data_dir, max_sandboxes=5, max_timeout=3600)
    await made.node.start()
    try:
        yield made
    finally:
        made.open_gates()
        await made.node.close()
        made.store.close()


def request(**changes: Any) -> CreateRequest:
    """A plain request for a sandbox."""
    values: dict[str, Any] = {
        "caller": ME,
        "template": "base",
        "timeout": 60,
        "network": NetworkConfig(),
        "internet": None,
        "metadata": {},
        "env": {},
        "secure": True,
    }
    return CreateRequest(**{**values, **changes})


def lost(what: str = "the launcher is gone") -> LauncherError:
    """What the launcher's client raises when the launcher dies."""
    return LauncherError(what, retryable=True)


def no_gateway() -> EgressUnavailable:
    """What the gateway's client raises when it is away."""
    return EgressUnavailable("no gateway")


def no_proxy() -> IngressError:
    """What the proxy's client raises when it is away."""
    return IngressError("no proxy")
