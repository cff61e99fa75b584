"""The stage that all attacks of a session share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import IPv4Address

import pytest

from attacks.attack import (
    MOVING,
    POLICIES,
    RESOLVERS_OURS,
    RESOLVERS_THEIRS,
    TRAP_RECORDS,
    TRAPS,
    Place,
)
from attacks.bystander import Bystander
from attacks.driver import Driver
from attacks.e2b import host
from attacks.stage import Guest, Stage
from internet import UPSTREAM_DNS, Internet
from internet.node import Node

_LIMITS = {"cpu_count": 1, "memory_mb": 512, "disk_mb": 512, "max_pids": 256}


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    """Everything running, and nothing left behind."""
    with ExitStack() as stack:
        internet = stack.enter_context(Internet())
        names = {title: internet.attach(title) for title in ("ours", "theirs", "ungated")}
        settings = {"upstream_dns": [UPSTREAM_DNS], **_LIMITS}
        node = Node(names["ours"], settings, internet.ca_file)
        with node, ExitStack() as inside:
            yield _set_up(inside, internet, names, node)
            inside.close()
            left = node.stop()
            log = node.log_tail()
    assert not left, "the node left behind:\n" + "\n".join(left) + f"\n{log}"


def _set_up(stack: ExitStack, internet: Internet, names: dict[str, str], node: Node) -> Stage:
    environment = node.environment()
    driver = stack.enter_context(Driver(names["ours"], environment))
    pool = stack.enter_context(ThreadPoolExecutor(8))
    neighbour = driver.create({})
    runner = ("python3", "-u", "-m", "programs.run")
    other = driver.create({})
    driver.open(other, "python3", "-m", "programs.server", "/tmp/heard")
    driver.open(neighbour, "python3", "-m", "programs.server", "/tmp/heard")
    url, envd_url, other_url = (
        driver.begin("host", sandbox=sandbox, port=port).result(10)
        for sandbox, port in ((neighbour, 7000), (neighbour, 49983), (other, 7000))
    )
    sandboxes = {}
    for policy in POLICIES:
        network = policy.network()
        if "allow_out" in network:
            network["allow_out"] = [entry.replace("{url}", url) for entry in network["allow_out"]]
        sandboxes[policy.title] = driver.open(driver.create(network), *runner)
    sandboxes[MOVING.title] = driver.open(driver.create({}), *runner)
    model = stack.enter_context(host.Model(names["theirs"]))
    guests = {}
    for title, namespace in (("theirs", model.guest), ("ungated", names["ungated"])):
        guests[title] = Guest(namespace, *runner)
        stack.callback(guests[title].close)
    domain = environment["E2B_DOMAIN"]
    own = {title: internet.uplink_address(name) for title, name in names.items()}
    words = {
        "ours": {
            "own": own["ours"],
            "neighbour": driver.run(neighbour, "hostname", "-I").strip(),
            "gateway": "169.254.1.1",
            "node": "198.18.0.1",
            "egress": "198.18.0.2",
            "api": f"api.{domain}",
            "domain": domain,
            "url": url,
            "envd_url": envd_url,
            "other_url": other_url,
            "other_id": other,
        },
        "theirs": {
            "own": own["theirs"],
            "neighbour": host.NEIGHBOUR,
            "gateway": host.GATEWAY,
        },
        "ungated": {
            "own": own["ungated"],
            "neighbour": host.NEIGHBOUR,
            "gateway": str(IPv4Address(own["ungated"]) - 1),
        },
    }
    places = {
        title: Place(
            title,
            own[title],
            f"up{index}",
            RESOLVERS_OURS if title == "ours" else RESOLVERS_THEIRS,
            gated=title != "ungated",
            words=words[title],
        )
        for index, title in enumerate(names, 1)
    }
    for label, record in TRAP_RECORDS.items():
        internet.set_name(f"{label}.{TRAPS}", record)
    for place in places.values():
        for label, record in place.trap_records().items():
            internet.set_name(f"{label}.{TRAPS}", record)
    bystanders = {title: stack.enter_context(Bystander(name)) for title, name in names.items()}
    return Stage(
        internet=internet,
        node=node,
        driver=driver,
        sandboxes=sandboxes,
        neighbour=neighbour,
        model=model,
        model_guest=guests["theirs"],
        ungated_guest=guests["ungated"],
        ours=places["ours"],
        theirs=places["theirs"],
        ungated=places["ungated"],
        bystanders=bystanders,
        pool=pool,
    )
