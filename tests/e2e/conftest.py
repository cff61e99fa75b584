"""Fixtures of the end-to-end tests: the small internet, a node in it, and sandboxes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox

from e2e.box import Box
from e2e.delegation import Delegate, report_to_parent
from internet import UPSTREAM_DNS, Internet, namespaces
from internet.node import Node

_HERE = Path(__file__).parent
_delegate = pytest.StashKey[Delegate]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The child runs beside the others, so what it has found is asked for last."""
    items.sort(key=lambda item: item.path.is_relative_to(_HERE))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Hand the tests of this directory to a child when they are not alone."""
    mine = [item for item in session.items if item.path.is_relative_to(_HERE)]
    if mine and len(mine) < len(session.items) and not session.config.option.collectonly:
        for item in mine:
            item.add_marker(pytest.mark.timeout(0))  # the child keeps the time
        session.stash[_delegate] = Delegate(session.config, mine)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Replay a delegated test; run any other as usual."""
    delegate = item.session.stash.get(_delegate, None)
    if delegate is None or not item.path.is_relative_to(_HERE):
        return None
    delegate.run(item)
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The child never outlives the session."""
    delegate = session.stash.get(_delegate, None)
    if delegate is not None:
        delegate.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In a child, every report goes to the parent as well."""
    report = yield
    report_to_parent(item.config, report)
    return report


@pytest.fixture(scope="session")
def world() -> Iterator[Internet]:
    """The small internet. From here on this process lives in a namespace attached to it."""
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: too late to enter another network namespace"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up then, too
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with Internet() as internet:
            namespaces.join(internet.attach("node"))
            yield internet
            namespaces.join(f"/proc/self/fd/{home}")
    finally:
        os.close(home)


@pytest.fixture(scope="session")
def node(world: Internet) -> Iterator[Node]:
    """A node in this process's network namespace; the SDK's variables point at it."""
    limits = {"cpu_count": 1, "memory_mb": 512, "disk_mb": 512, "max_pids": 256}
    settings = {"upstream_dns": [UPSTREAM_DNS], **limits}
    with Node(settings=settings, authority=world.ca_file) as node:
        with pytest.MonkeyPatch.context() as patch:
            for key, value in node.environment().items():
                patch.setenv(key, value)
            yield node
        left = node.stop()
        log = node.log_tail()
    assert not left, "the node left behind:\n" + "\n".join(left) + f"\n{log}"


@pytest.fixture
def internet(world: Internet) -> Internet:
    """The small internet with an empty journal."""
    world.reset()
    return world


@pytest.fixture(scope="session")
def make_box(node: Node, world: Internet) -> Iterator[Callable[..., Box]]:
    """Makes sandboxes with the probe in them."""
    made: list[Box] = []

    def make(**options: object) -> Box:
        box = Box.create(**options)
        made.append(box)
        return box

    yield make
    for box in made:
        box.sandbox.kill()


@pytest.fixture(scope="session")
def shared_box(make_box: Callable[..., Box]) -> Box:
    """One sandbox for all tests that change nothing but its network policy."""
    return make_box(timeout=1800)


@pytest.fixture
def box(shared_box: Box, internet: Internet) -> Box:
    """The shared sandbox with no policy, and the far side's journal empty."""
    shared_box.policy()
    internet.reset()
    return shared_box


@pytest.fixture(scope="session")
def other_box(make_box: Callable[..., Box]) -> Box:
    """Another sandbox of the same node."""
    return make_box(timeout=1800)


@pytest.fixture
def sandboxes(node: Node) -> Iterator[Callable[..., Sandbox]]:
    """Makes plain sandboxes through the SDK, and kills them."""
    made: list[Sandbox] = []

    def make(**options: Any) -> Sandbox:
        sandbox = Sandbox.create(**options)
        made.append(sandbox)
        return sandbox

    yield make
    for sandbox in made:
        sandbox.kill()
