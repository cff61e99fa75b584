"""The client of a node under fault: runs where the node runs, and does what it is told by lines.

Each line on standard input is `["name", arguments...]`, each on standard output the answer, or
`{"error": "..."}`. A process of its own, since the SDK's threads stay in the network namespace
that they were born in.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from e2b import ALL_TRAFFIC, Sandbox, SandboxQuery
from e2b.sandbox_sync.commands.command_handle import CommandHandle

from faults import promises
from faults.day import Day

NAMES = ["google.com", "*.github.com"]
_KEPT = "/home/user/kept"
_MODES: tuple[Literal["full"], Literal["filesystem"]] = ("full", "filesystem")


class Driver:
    """The sandboxes that must outlive everything, and the load beside them."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, Sandbox] = {}
        self.streams: dict[str, Stream] = {}
        self._load = Load()
        self._naps = Naps()
        self._promises = promises.Promises()

    def create(self, label: str, program: str, network: Any) -> str:
        """A sandbox with the programs of `inside.py` in it."""
        sandbox = Sandbox.create(timeout=3000, metadata={"label": label}, network=network or None)
        sandbox.files.write("/home/user/inside.py", program)
        self.sandboxes[label] = sandbox
        return sandbox.sandbox_id

    def start(self, label: str, *arguments: str) -> None:
        """Run a program of `inside.py` there, in the background, and follow its output."""
        command = " ".join(["exec python3 /home/user/inside.py", *arguments])
        handle = self.sandboxes[label].commands.run(command, background=True, timeout=0)
        self.streams[label] = Stream(handle)

    def follow(self, label: str) -> None:
        """Attach again to the program of `label`, whose stream was broken off."""
        old = self.streams[label]
        commands = self.sandboxes[label].commands
        self.streams[label] = Stream(commands.connect(old.handle.pid, timeout=0))

    def stream(self, label: str) -> dict[str, Any]:
        """What came over the stream so far, and how it broke off, if it did."""
        stream = self.streams[label]
        return {"text": "".join(stream.pieces), "broken": stream.broken}

    def read(self, label: str, path: str) -> str:
        """A file of the sandbox, through the SDK."""
        return self.sandboxes[label].files.read(path)

    def facts(self) -> dict[str, Any]:
        """What the API says of all sandboxes, by label."""
        found: dict[str, Any] = {}
        pages = Sandbox.list(query=SandboxQuery())
        while pages.has_next:
            for info in pages.next_items():
                label = info.metadata.get("label", info.sandbox_id)
                found[label] = [info.sandbox_id, info.end_at.isoformat(), str(info.state)]
        return found

    def run(self, label: str, command: str) -> str:
        """A command's output."""
        return self.sandboxes[label].commands.run(command, timeout=20).stdout

    def fresh(self, label: str) -> int:
        """The status of a request to envd over a connection of its own, without a second try."""
        context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
        host, _, port = self.sandboxes[label].get_host(49983).partition(":")
        connection = http.client.HTTPSConnection(
            host, int(port or 443), timeout=15, context=context
        )
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        finally:
            connection.close()

    def kill(self, label: str) -> None:
        """End a sandbox."""
        self.sandboxes.pop(label).kill()

    def pause(self, label: str, mode: Literal["full", "filesystem"]) -> str:
        """Pause a sandbox; its id."""
        self.sandboxes[label].pause(mode=mode)
        return self.sandboxes[label].sandbox_id

    def connect(self, label: str, sandbox_id: str) -> None:
        """Resume a sandbox that another client made."""
        self.sandboxes[label] = Sandbox.connect(sandbox_id, timeout=3000)

    def snapshot(self, label: str) -> str:
        """Take one; its id."""
        return self.sandboxes[label].create_snapshot().snapshot_id

    def copy(self, label: str, snapshot_id: str) -> None:
        """A sandbox made of a snapshot."""
        self.sandboxes[label] = Sandbox.create(template=snapshot_id, timeout=3000)

    def get(self, path: str) -> list[Any]:
        """Status and body of a request to the API."""
        host, _, port = os.environ["E2B_DOMAIN"].partition(":")
        context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
        connection = http.client.HTTPSConnection(
            f"api.{host}", int(port or 443), timeout=15, context=context
        )
        try:
            connection.request("GET", path, headers={"X-API-KEY": os.environ["E2B_API_KEY"]})
            answer = connection.getresponse()
            return [answer.status, json.loads(answer.read())]
        finally:
            connection.close()

    def watch(self, label: str) -> None:
        """Ask the API, and envd of a sandbox, all the time, each time as somebody new."""
        self._watch = Watch({"API": self.facts_once, "URL": lambda: self.fresh(label)})

    def watched(self, label: str) -> dict[str, list[float]]:
        """When (monotonic) each answered, and when the stream of `label` had something new."""
        return {**self._watch.end(), "stream": self.streams[label].times}

    def facts_once(self) -> int:
        """The status of a listing, without a second try."""
        status: int = self.get("/sandboxes")[0]
        return status

    def promise(self) -> None:
        """Begin to pause, resume and copy sandboxes."""
        self._promises.start()

    def promised(self) -> dict[str, Any]:
        """End that; what the node said it keeps."""
        return self._promises.end()

    def check(self, promised: dict[str, Any], most: int) -> dict[str, int]:
        """Whether it did."""
        return promises.check(promised, most=most)

    def shell(self, label: str, command: str) -> None:
        """Run a command in the background and do not care what becomes of it."""
        self.sandboxes[label].commands.run(command, background=True, timeout=30)

    def commands_for(self, label: str, seconds: float) -> list[float]:
        """How long each of as many commands took as there was time for."""
        until, times = time.monotonic() + seconds, []
        while time.monotonic() < until:
            begun = time.perf_counter()
            assert self.sandboxes[label].commands.run("echo hello").stdout == "hello\n"
            times.append(time.perf_counter() - begun)
        return times

    def until_answered(self) -> float:
        """Seconds until the API answers."""
        begun = time.monotonic()
        while True:
            try:
                self.facts()
            except Exception:  # whatever the state of the node makes the SDK raise
                if time.monotonic() - begun > 30:
                    raise
                time.sleep(0.01)
            else:
                return time.monotonic() - begun

    def day(self, seconds: float) -> dict[str, int]:
        """Use all that has a timer, for a part of a day by a faster clock (`fastclock.py`)."""
        return Day().run(seconds)

    def cycle(self, count: int) -> int:
        """Create, use and end as many sandboxes; every fourth ends by its timeout."""

        def one(index: int) -> None:
            sandbox = Sandbox.create(
                timeout=2 if index % 4 == 0 else 60,
                network={"allow_out": NAMES, "deny_out": [ALL_TRAFFIC]} if index % 2 else None,
            )
            if index % 4 == 0:
                return
            if index % 8 == 1:
                sandbox.commands.run("echo > f")
            sandbox.kill()

        with ThreadPoolExecutor(4) as clients:
            list(clients.map(one, range(count)))
        while self.facts():
            time.sleep(0.1)
        return count

    def load(self, on: bool) -> dict[str, int]:
        """Create, use and kill sandboxes beside everything; how often that went well or not."""
        return self._load.start() if on else self._load.stop()

    def naps(self, on: bool) -> list[str]:
        """Pause and resume a sandbox all the time, and finally; what it lost, if anything."""
        return self._naps.start() if on else self._naps.stop()


class Stream:
    """Collects a command's output in the background."""

    def __init__(self, handle: CommandHandle) -> None:
        self.handle = handle
        self.pieces: list[str] = []
        self.times: list[float] = []
        self.broken: str | None = None
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        try:
            self.handle.wait(on_stdout=self._note)
        except Exception as error:  # every kind of end is one to tell
            self.broken = f"{type(error).__name__}: {error}"

    def _note(self, text: str) -> None:
        self.times.append(time.monotonic())
        self.pieces.append(text)


class Load:
    """Sandboxes that come and go."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._counts = {"well": 0, "failed": 0}

    def start(self) -> dict[str, int]:
        """Begin."""
        self._counts = {"well": 0, "failed": 0}
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self._counts

    def stop(self) -> dict[str, int]:
        """End, and tell how it went."""
        self._stop.set()
        assert self._thread is not None
        self._thread.join(60)
        return self._counts

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                sandbox = Sandbox.create(timeout=5, network={"deny_out": [ALL_TRAFFIC]})
                sandbox.commands.run("echo > /tmp/x", timeout=5)
                sandbox.kill()
                self._counts["well"] += 1
            except Exception:  # the node is being killed; that some calls fail is expected
                self._counts["failed"] += 1
                time.sleep(0.02)


class Watch:
    """Notes when something works."""

    def __init__(self, tries: dict[str, Callable[[], int]]) -> None:
        self._over = threading.Event()
        self._times: dict[str, list[float]] = {name: [] for name in tries}
        self._threads = [
            threading.Thread(target=self._run, args=item, daemon=True) for item in tries.items()
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> dict[str, list[float]]:
        """Stop."""
        self._over.set()
        for thread in self._threads:
            thread.join(30)
        return self._times

    def _run(self, name: str, attempt: Callable[[], int]) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                if attempt() < 300:
                    self._times[name].append(time.monotonic())
            time.sleep(0.01)


class Naps:
    """A sandbox that is paused and resumed, in both ways, whatever else happens."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lost: list[str] = []

    def start(self) -> list[str]:
        """Begin."""
        self._over.clear()
        self._threads = [
            threading.Thread(target=self._nap, args=(mode,), daemon=True) for mode in _MODES
        ]
        for thread in self._threads:
            thread.start()
        return self._lost

    def stop(self) -> list[str]:
        """End."""
        self._over.set()
        for thread in self._threads:
            thread.join(120)
        return self._lost

    def _nap(self, mode: Literal["full", "filesystem"]) -> None:
        try:
            sandbox = self._made()
            text = sandbox.files.read(_KEPT)
            while not self._over.is_set():
                found = text
                with contextlib.suppress(Exception):  # the node is being killed
                    sandbox.pause(mode=mode)
                    sandbox.connect(timeout=3000)
                    found = sandbox.files.read(_KEPT)
                assert found == text, "another content"
                time.sleep(0.05)
            self._awaken(sandbox)
            assert sandbox.files.read(_KEPT) == text, "another content"
            sandbox.kill()
        except Exception as error:  # told to the test
            self._lost.append(f"{mode}: {type(error).__name__}: {error}")

    def _made(self) -> Sandbox:
        while True:
            with contextlib.suppress(Exception):  # the node is being killed
                sandbox = Sandbox.create(timeout=3000)
                sandbox.files.write(_KEPT, os.urandom(1 << 16).hex())
                return sandbox

    def _awaken(self, sandbox: Sandbox) -> None:
        """A change that was broken off may still be going on."""
        until = time.monotonic() + 30
        while True:
            try:
                sandbox.connect(timeout=3000)
            except Exception:  # told if it goes on
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
            else:
                return


def main() -> None:
    driver = Driver()
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        call: Callable[..., Any] = getattr(driver, name)
        try:
            answer: Any = {"result": call(*arguments)}
        except Exception as error:  # told to the test, which fails with it
            answer = {"error": f"{name}: {type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
