"""Files of a GiB pass both ways, and envd stays small."""

from __future__ import annotations

import os
import subprocess

import pytest

from e2e.programs import PYTHON
from internet import UPSTREAM_DNS, Internet, namespaces
from internet.node import Node

_SIZE = 1 << 30
_MOST_KB = 100_000
"""Of envd, with the pages that it shares with the launcher."""
_PROGRAM = """
import hashlib, io, random, sys
from e2b import Sandbox

size, block = int(sys.argv[1]), random.Random(1).randbytes(1 << 20)

class File(io.RawIOBase):
    left = size
    def read(self, count=-1):
        count = min(self.left, len(block) if count < 0 else count, len(block))
        self.left -= count
        return block[:count]

with Sandbox.create(timeout=600) as sandbox:
    def peak():
        status = sandbox.commands.run("cat /proc/1/status", user="root").stdout
        return int(status.partition("VmHWM:")[2].split()[0])
    print("before", peak())
    sandbox.files.write("big", File(), request_timeout=300)
    shown = sandbox.commands.run("sha256sum big; stat -c %s big", timeout=120).stdout.split()
    print("uploaded", shown[2], peak())
    hasher, count = hashlib.sha256(), 0
    for chunk in sandbox.files.read("big", format="stream", request_timeout=300):
        hasher.update(chunk)
        count += len(chunk)
    assert hasher.hexdigest() == shown[0]
    print("downloaded", count, peak())
"""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_file_of_a_gib_passes_both_ways_in_constant_memory(world: Internet) -> None:
    limits = {"cpu_count": 2, "memory_mb": 512, "disk_mb": 1536}
    settings = {"upstream_dns": [UPSTREAM_DNS], **limits}
    with Node(world.attach("large"), settings) as node:
        assert node.namespace is not None
        drop = ("E2B_", "SSL_CERT", "REQUESTS_CA", "NODE_EXTRA", "SANDGATE_")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(drop)}
        with namespaces.inside(node.namespace):
            done = subprocess.run(
                [PYTHON, "-c", _PROGRAM, str(_SIZE)],
                env=inherited | node.environment(),
                capture_output=True,
                text=True,
                timeout=500,
                check=False,
            )
        left = node.stop()
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    (_, before), (_, sent, uploaded), (_, got, downloaded) = map(
        str.split, done.stdout.splitlines()
    )
    assert int(sent) == int(got) == _SIZE
    assert int(before) <= int(uploaded) <= int(downloaded) < _MOST_KB
    assert not left, "\n".join(left)
