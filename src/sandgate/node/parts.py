"""What a node is made of, and how it says that it is well."""

from __future__ import annotations

from dataclasses import dataclass

from sandgate.node.catalogue import TemplateCatalogue
from sandgate.node.ports import EgressGate, Gauge, IngressGate, Launcher
from sandgate.settings import Settings
from sandgate.store import Store


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a node works with."""

    settings: Settings
    store: Store
    templates: TemplateCatalogue
    launcher: Launcher
    egress: EgressGate
    ingress: IngressGate
    gauge: Gauge

    def connected(self) -> dict[str, bool]:
        """Which of the other processes are connected to."""
        return {
            "launcher": self.launcher.connected,
            "egress": self.egress.connected,
            "ingress": self.ingress.connected,
        }


@dataclass(frozen=True, slots=True)
class Health:
    """What is up. `components` by name."""

    ready: bool
    components: dict[str, bool]
    sandboxes: int
