"""Where attacks are run: a sandbox of a real node, the model of E2B, and no gate at all."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attacks.attack import Attack, Place, Policy, Verdict
from attacks.bystander import Bystander
from attacks.driver import HOME, PROGRAMS, Conversation, Driver
from attacks.e2b.host import Model
from internet import Contacts, Internet, namespaces, templates
from internet.node import Node

_SETTLE = 0.03
"""Seconds for what was sent last to arrive."""
_PATIENCE = 3.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of one attack in one place."""

    leaks: tuple[str, ...]
    """Contacts that the policy does not permit, and what the program says that it reached."""
    control: bool | None
    """Did what is allowed still work? None: nothing is allowed."""
    said: str

    @property
    def verdict(self) -> Verdict:
        """Did the attack pass?"""
        return Verdict.PASSES if self.leaks else Verdict.REFUSED


class Guest:
    """Root in a network namespace and a copy of a sandbox's file system: answers attacks."""

    def __init__(self, namespace: str, *command: str) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix=f"{namespace}-"))
        for name in ("upper", "work", "root"):
            (self._directory / name).mkdir()
        target = self._directory / "upper" / HOME.strip("/") / "programs"
        target.mkdir(parents=True)
        for path in PROGRAMS:
            shutil.copy(path, target / path.name)
        etc = self._directory / "upper/etc"
        etc.mkdir()
        (etc / "resolv.conf").write_text("nameserver 8.8.8.8\n")
        (etc / "hosts").write_text("127.0.0.1 localhost\n")
        with namespaces.inside(namespace):
            self._process = subprocess.Popen(
                [
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
                    *("sh", "-c", self._script(command)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def _script(self, command: Sequence[str]) -> str:
        here = self._directory
        lower = templates.built_templates() / "base/rootfs"
        root = here / "root"
        return (
            f"mount -t overlay overlay -o lowerdir={lower},upperdir={here}/upper,"
            f"workdir={here}/work {root} && mount -t proc proc {root}/proc && "
            f"mount --rbind /dev {root}/dev && mount -t sysfs sysfs {root}/sys && "
            f"exec chroot {root} sh -c {shlex.quote(f'cd {HOME} && exec {shlex.join(command)}')}"
        )

    def close(self) -> None:
        """End it, and remove the copy."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def ask(self, line: str) -> str:
        """The answer to a line. For one thread at a time."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()


@dataclass(frozen=True, slots=True)
class Stage:
    """All three places, and what is around them."""

    internet: Internet
    node: Node
    driver: Driver
    sandboxes: Mapping[str, Conversation]
    """Sandboxes that wait for attacks, by the title of their policy."""
    neighbour: str
    model: Model
    model_guest: Guest
    ungated_guest: Guest
    ours: Place
    theirs: Place
    ungated: Place
    bystanders: Mapping[str, Bystander]
    """By the title of the place."""
    pool: ThreadPoolExecutor
    heard: dict[str, int] = field(default_factory=dict)
    """What the bystanders had counted when the attack began."""

    def attack(self, attack: Attack) -> tuple[Seen, Seen | None, Seen | None]:
        """Run one in all places at once: ours, theirs, without any gate."""
        policy = attack.policy
        self.model.set_policy(policy.allow, policy.deny)
        for title, bystander in self.bystanders.items():
            self.heard[title] = bystander.count()
        heard_before = self._neighbour_heard(attack)
        self.internet.reset()
        runs: dict[str, Callable[[str], str]] = {self.ours.title: self.sandboxes[policy.title].ask}
        if attack.theirs is not None:
            runs[self.theirs.title] = self.model_guest.ask
        if attack.shown and attack.theirs is not Verdict.PASSES:  # which would show it as well
            runs[self.ungated.title] = self.ungated_guest.ask
        places = (self.ours, self.theirs, self.ungated)
        pending = {
            place.title: self.pool.submit(runs[place.title], _request(attack, place))
            for place in places
            if place.title in runs
        }
        results: dict[str, dict[str, Any]] = {
            title: json.loads(future.result()) for title, future in pending.items()
        }
        if self._neighbour_heard(attack) != heard_before:
            results[self.ours.title]["reached"] = True
        time.sleep(_SETTLE)
        patience = time.monotonic() + _PATIENCE
        while True:  # what should pass may take its time on a busy machine
            contacts = self.internet.contacts()
            seen = [
                self._judge(policy, place, contacts, results.get(place.title)) for place in places
            ]
            ours, theirs, ungated = seen
            assert ours is not None
            verdicts = [some and some.verdict for some in (ours, theirs, ungated)]
            expected = [attack.ours, attack.theirs, ungated and Verdict.PASSES]
            if verdicts == expected or time.monotonic() > patience:
                return ours, theirs, ungated
            time.sleep(_SETTLE)

    def ask(
        self, place: Place, policy: Policy, program: str, arguments: Mapping[str, object]
    ) -> Future[bool]:
        """Start a program in one place, for a scenario; whether it got through."""
        runner: Conversation | Guest = self.sandboxes[policy.title]
        if place is not self.ours:
            runner = self.model_guest if place is self.theirs else self.ungated_guest

        def run() -> bool:
            request = {"program": program, "arguments": dict(arguments), "control": None}
            result = json.loads(runner.ask(json.dumps(request)))
            assert "failed" not in result, result["failed"]
            assert not result["said"], result["said"]
            return bool(result["reached"])

        return self.pool.submit(run)

    def leaks(self, place: Place, policy: Policy, contacts: Contacts) -> list[str]:
        """Contacts that were made from a place and are not permitted."""
        return [
            str(contact)
            for contact in contacts
            if place.made(contact) and not policy.permits(contact, place)
        ]

    def _judge(
        self, policy: Policy, place: Place, contacts: Contacts, result: dict[str, Any] | None
    ) -> Seen | None:
        if result is None:
            return None
        assert "failed" not in result, result["failed"]
        leaks = self.leaks(place, policy, contacts)
        if result["reached"]:
            leaks.append("the program says that it got through")
        bystander = self.bystanders.get(place.title)
        if bystander is not None and (heard := bystander.count() - self.heard[place.title]):
            leaks.append(f"{heard} contacts at services of the machine")
        return Seen(tuple(leaks), result["control"], result["said"])

    def _neighbour_heard(self, attack: Attack) -> str:
        """What the other sandbox's server has written down, where it could have been reached."""
        if "{neighbour}" not in map(str, attack.arguments.values()):
            return ""
        return self.driver.run(self.neighbour, "cat", "/tmp/heard")


def _request(attack: Attack, place: Place) -> str:
    def fill(value: object) -> object:
        if isinstance(value, list):
            return [fill(item) for item in value]
        if isinstance(value, str):
            for word, meaning in {**place.words, "place": place.title}.items():
                value = value.replace("{" + word + "}", meaning)
        return value

    arguments = {key: fill(value) for key, value in attack.arguments.items()}
    control = attack.policy.control if place.gated else None
    return json.dumps({"program": attack.program, "arguments": arguments, "control": control})
