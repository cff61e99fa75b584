"""Where attacks are run: a sandbox of a real node, the model of E2B, and no gate at all."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.attack import Attack, Place, Policy, Verdict
from attacks.bystander import Bystander
from attacks.driver import HOME, PROGRAMS, Driver
from attacks.e2b.host import Model
from internet import Contacts, Internet, namespaces, templates

_SETTLE = 0.05
"""Seconds for what was sent last to arrive."""


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
    """Runs programs as root in a network namespace, in a copy of a sandbox's file system."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
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

    def close(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A program under way. It ends with its parent."""
        here = self._directory
        lower = templates.built_templates() / "base/rootfs"
        root = here / "root"
        script = (
            f"mount -t overlay overlay -o lowerdir={lower},upperdir={here}/upper,"
            f"workdir={here}/work {root} && mount -t proc proc {root}/proc && "
            f"mount --rbind /dev {root}/dev && mount -t sysfs sysfs {root}/sys && "
            f"exec chroot {root} sh -c {shlex.quote(f'cd {HOME} && exec {shlex.join(command)}')}"
        )
        with namespaces.inside(self._namespace):
            return subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def run(self, *command: str, seconds: float = 60) -> str:
        """Its standard output."""
        with self.start(*command) as process:
            out, err = process.communicate(timeout=seconds)
        if process.returncode != 0:
            raise RuntimeError(f"{command}: {err}")
        return out


@dataclass(frozen=True, slots=True)
class Stage:
    """All three places, and what is around them."""

    internet: Internet
    driver: Driver
    sandboxes: Mapping[str, str]
    """Ids of the sandboxes, by the title of their policy."""
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

    def attack(self, attack: Attack) -> tuple[Seen, Seen | None, Seen | None]:
        """Run one in all places at once: ours, theirs, without any gate."""
        policy = attack.policy
        self.model.policy(policy.allow, policy.deny)
        for bystander in self.bystanders.values():
            bystander.heard()
        heard_before = self._neighbour_heard(attack)
        self.internet.reset()
        runs: dict[str, Callable[[str], str]] = {
            self.ours.title: lambda request: self.driver.run(
                self.sandboxes[policy.title], "python3", "-m", "programs.run", request
            )
        }
        if attack.theirs is not None:
            runs[self.theirs.title] = lambda request: self.model_guest.run(
                "python3", "-m", "programs.run", request
            )
        if attack.shown:
            runs[self.ungated.title] = lambda request: self.ungated_guest.run(
                "python3", "-m", "programs.run", request
            )
        places = (self.ours, self.theirs, self.ungated)
        pending = {
            place.title: self.pool.submit(runs[place.title], _request(attack, place))
            for place in places
            if place.title in runs
        }
        results: dict[str, dict[str, Any]] = {
            title: json.loads(future.result()) for title, future in pending.items()
        }
        time.sleep(_SETTLE)
        contacts = self.internet.contacts()
        if self._neighbour_heard(attack) != heard_before:
            results[self.ours.title]["reached"] = True
        seen = [self._judge(policy, place, contacts, results.get(place.title)) for place in places]
        assert seen[0] is not None
        return seen[0], seen[1], seen[2]

    def _judge(
        self, policy: Policy, place: Place, contacts: Contacts, result: dict[str, Any] | None
    ) -> Seen | None:
        if result is None:
            return None
        leaks = [
            str(contact)
            for contact in contacts
            if place.made(contact) and not policy.permits(contact, place)
        ]
        if result["reached"]:
            leaks.append("the program says that it got through")
        bystander = self.bystanders.get(place.title)
        if bystander is not None and (heard := bystander.heard()):
            leaks.append(f"{heard} contacts at services of the machine")
        return Seen(tuple(leaks), result["control"], result["said"])

    def _neighbour_heard(self, attack: Attack) -> str:
        """What the other sandbox's server has written down, where it could have been reached."""
        if "{neighbour}" not in map(str, attack.arguments.values()):
            return ""
        return self.driver.run(self.neighbour, "cat", "/tmp/heard")


def _request(attack: Attack, place: Place) -> str:
    def fill(value: object) -> object:
        if isinstance(value, str):
            for word, meaning in {**place.words, "place": place.title}.items():
                value = value.replace("{" + word + "}", meaning)
        return value

    arguments = {key: fill(value) for key, value in attack.arguments.items()}
    request = {"program": attack.program, "arguments": arguments}
    return json.dumps({**request, "control": attack.policy.control})
