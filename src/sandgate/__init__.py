"""Sandgate: sandboxes for untrusted code on your own machine.

`from sandgate import Sandbox, AsyncSandbox, ALL_TRAFFIC` gives the official E2B classes bound to
the node of this machine. The node is started at the first call if none runs; importing alone
starts nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandgate.policy import ALL_TRAFFIC

if TYPE_CHECKING:
    from sandgate.client import AsyncSandbox, Sandbox

    __version__: str

__all__ = ["ALL_TRAFFIC", "AsyncSandbox", "Sandbox", "__version__"]


def __getattr__(name: str) -> object:
    # The SDK takes half a second to import; the node's own processes do without it.
    if name in ("AsyncSandbox", "Sandbox"):
        from sandgate import client

        return getattr(client, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("sandgate")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
