"""A sandbox with the probe in it, and the words that the tests are written in."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from e2b import ALL_TRAFFIC, CommandExitException, CommandResult, Sandbox

from internet import namespaces

DENY_ALL = [ALL_TRAFFIC]
PROMPT = 1.0
"""Seconds within which a refusal must be seen. Generous: the machine may be busy."""

_PROBE = "/home/user/.probe.py"


def read(path: Path) -> str:
    """A file's text, nothing if it is gone."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Wait for something that happens elsewhere."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@dataclass(frozen=True)
class Seen:
    """What a probe saw. See `probe.py` for the outcomes."""

    outcome: str
    seconds: float
    data: str

    @property
    def refused(self) -> bool:
        """Was it refused, visibly and at once?"""
        return self.outcome in ("refused", "reset", "prohibited") and self.seconds < PROMPT

    @cached_property
    def answer(self) -> dict[str, Any]:
        """What the small internet's web server says that it saw."""
        assert self.outcome == "answered", self
        body: dict[str, Any] = json.loads(self.data.split("\r\n\r\n", 1)[1])
        return body


class Box:
    """One sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    @classmethod
    def create(cls, **options: Any) -> Self:
        """A new sandbox."""
        box = cls(Sandbox.create(**options))
        box.sandbox.files.write(_PROBE, (Path(__file__).parent / "probe.py").read_text())
        return box

    def policy(
        self,
        allow: list[str] | None = None,
        deny: list[str] | None = None,
        internet: bool | None = None,
    ) -> None:
        """Replace the network policy of the running sandbox. No arguments: no restriction."""
        update: dict[str, Any] = {}
        if allow is not None:
            update["allow_out"] = allow
        if deny is not None:
            update["deny_out"] = deny
        if internet is not None:
            update["allow_internet_access"] = internet
        self.update(update)

    def update(self, network: Any) -> None:
        """PUT anything."""
        self.sandbox.update_network(network)

    def names(self, *names: str) -> None:
        """Allow these entries, and nothing else."""
        self.policy(list(names), DENY_ALL)

    def sh(self, command: str, **options: Any) -> CommandResult[str]:
        """Run a command; a failing one is a result as well."""
        options.setdefault("timeout", 30)
        try:
            result: CommandResult[str] = self.sandbox.commands.run(command, **options)
        except CommandExitException as failed:
            return failed
        return result

    def curl(self, url: str, *arguments: str) -> CommandResult[str]:
        """curl as a user would run it; 5 seconds."""
        return self.sh(shlex.join(["curl", "-sS", "-m", "5", *arguments, url]))

    def fetch(self, url: str, *arguments: str) -> dict[str, Any] | None:
        """What the web server at `url` says it saw, or None if curl failed."""
        done = self.curl(url, *arguments)
        return None if done.exit_code else json.loads(done.stdout)

    def dig(self, *arguments: str) -> str:
        """The status and the answers of a DNS query, as words: `NOERROR 1.2.3.4`."""
        done = self.sh(
            "dig +tries=1 +time=4 +noall +comments +answer " + shlex.join(arguments)
        ).stdout
        status = done.partition("status: ")[2].partition(",")[0] or "NONE"
        answers = [line.split() for line in done.splitlines() if line and line[0] != ";"]
        return " ".join([status, *(words[-1] for words in answers if words[3] == "A")])

    def probe(self, call: str, *arguments: object, user: str = "user") -> Seen:
        """Run a function of `probe.py` inside."""
        return Seen(**self.probe_json(call, *arguments, user=user))

    def probes(self, call: str, *arguments: Sequence[object], at_once: bool = False) -> list[Seen]:
        """Run a function of `probe.py` inside for each list of arguments."""
        seen = self.probe_json("at_once" if at_once else "each", call, list(arguments))
        return [Seen(**one) for one in seen]

    def probe_json(self, call: str, *arguments: object, user: str = "user") -> Any:
        """Run a function of `probe.py` inside and return what it returns."""
        command = shlex.join(["python3", _PROBE, call, json.dumps(arguments)])
        done = self.sh(command, user=user)
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def serving(self, port: int, command: str = "python3 -m http.server {}") -> Iterator[None]:
        """A server inside, from when it answers until the block ends."""
        server = self.sandbox.commands.run(command.format(port), background=True, timeout=0)
        try:
            retry = "--retry 100 --retry-delay 0 --retry-max-time 10 --retry-connrefused"
            done = self.sh(f"curl -sS {retry} -o /dev/null http://127.0.0.1:{port}/")
            assert done.exit_code == 0, done.stderr
            yield
        finally:
            server.kill()

    @contextmanager
    def network_namespace(self) -> Iterator[None]:
        """Run a block as the machine's root in the sandbox's network namespace."""
        mark = self.sandbox.sandbox_id
        handle = self.sandbox.commands.run(f"sleep 3000; : {mark}", background=True)
        try:
            (process, *_) = [
                path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if mark in read(path)
            ]
            with namespaces.inside(str(process / "ns" / "net")):
                yield
        finally:
            handle.kill()

    @cached_property
    def address(self) -> str:
        """The sandbox's own address."""
        return self.sh("hostname -I").stdout.split()[0]
