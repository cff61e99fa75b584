"""Where the conformance checks run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from internet import UPSTREAM_DNS, Internet, namespaces
from internet.node import Node

_LIMITS = {"cpu_count": 1, "memory_mb": 512, "disk_mb": 1024}


@contextmanager
def node_in_its_own_internet() -> Iterator[Mapping[str, str]]:
    """A node in the small internet, where this thread is until the end too.

    Gives the variables for the SDKs.
    """
    with Internet() as internet:
        namespace = internet.attach()
        settings = {"upstream_dns": [UPSTREAM_DNS], **_LIMITS}
        with Node(namespace, settings, authority=internet.ca_file) as node:
            with namespaces.inside(namespace):
                yield node.environment()
