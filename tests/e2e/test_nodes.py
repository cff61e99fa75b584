"""Two nodes on one machine, and a node that starts by itself."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from e2e.box import Box
from e2e.programs import PYTHON
from internet import UPSTREAM_DNS, Internet, namespaces
from internet.node import Node

pytestmark = pytest.mark.timeout(120)

_USE = """
from e2b import Sandbox
with Sandbox.create(network={"deny_out": ["8.8.8.8"]}) as sandbox:
    print(sandbox.get_host(3000))
    print(sandbox.commands.run("curl -s -m 5 http://1.1.1.1/ | grep -o 'server.: .[0-9.]*'").stdout)
    sandbox.commands.run("curl -s -m 5 http://8.8.8.8/ || echo refused", on_stdout=print)
"""

_LOCAL = """
import asyncio, os
from sandgate import ALL_TRAFFIC, AsyncSandbox, Sandbox
assert not [name for name in os.environ if name.startswith("E2B_")]
with Sandbox.create() as sandbox:
    print(sandbox.commands.run("echo sync $USER").stdout)
    assert ALL_TRAFFIC == "0.0.0.0/0"
async def main():
    sandbox = await AsyncSandbox.create()
    print((await sandbox.commands.run("echo async")).stdout)
    await sandbox.kill()
asyncio.run(main())
"""


def _python(code: str, namespace: str, environment: dict[str, str]) -> str:
    drop = ("E2B_", "SSL_CERT", "REQUESTS_CA", "NODE_EXTRA", "SANDGATE_")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(drop)}
    with namespaces.inside(namespace):
        done = subprocess.run(
            [PYTHON, "-c", code],
            env=inherited | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_nodes_do_not_touch_each_other(world: Internet, box: Box) -> None:
    settings = {
        "upstream_dns": [UPSTREAM_DNS],
        "domain": "second.localhost",
        "https_port": 8443,
        "address_range": "198.18.128.0/17",
    }
    with Node(world.attach("second"), settings) as second:
        assert second.namespace is not None
        output = _python(_USE, second.namespace, second.environment())
        assert re.search(r"^3000-i[a-z0-9]+\.second\.localhost:8443$", output, re.MULTILINE)
        assert "1.1.1.1" in output and "refused" in output
        assert box.probe("tcp", "8.8.8.8", 8080, "x").outcome == "answered"
        key = os.environ["E2B_API_KEY"]
        assert second.environment()["E2B_API_KEY"] != key
        left = second.stop()
    assert not left, "\n".join(left)
    assert box.sh("echo first goes on").stdout == "first goes on\n"
    assert box.probe("tcp", "1.1.1.1", 8080, "x").outcome == "answered"


def test_a_node_runs_under_ip_netns_exec(world: Internet) -> None:
    """Which gives its program another /sys, without the cgroups of the machine."""
    namespace = world.attach("third")
    settings = {"upstream_dns": [UPSTREAM_DNS]}
    with Node(namespace, settings, launch=("ip", "netns", "exec", namespace)) as node:
        assert "refused" in _python(_USE, namespace, node.environment())
        left = node.stop()
    assert not left, "\n".join(left)


def test_importing_from_sandgate_starts_a_node_and_needs_no_variables(world: Internet) -> None:
    namespace = world.attach("local")
    node = Node(namespace)
    try:
        node.prepare()
        environment = {
            "SANDGATE_DATA_DIR": str(node.data_dir),
            "SANDGATE_UPSTREAM_DNS": UPSTREAM_DNS,
        }
        for _ in range(2):  # the second time it runs already
            assert _python(_LOCAL, namespace, environment).split() == ["sync", "user", "async"]
        assert node.command("status").returncode == 0
        left = node.stop()
    finally:
        node.close()
    assert not left, "\n".join(left)
