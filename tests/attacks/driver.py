"""Uses a node through the official SDK, in a process that lives in the node's namespace.

`python -m attacks.driver` answers requests of one line of JSON each; several may be under way.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from e2b import CommandExitException, Sandbox, SandboxException

from internet import namespaces

_HERE = Path(__file__).resolve().parent
PROGRAMS = sorted((_HERE / "programs").glob("*.py"))
HOME = "/opt/attacks"
"""Where the programs are, inside a sandbox."""


class Driver:
    """A context manager: the side of the tests."""

    def __init__(self, namespace: str, environment: Mapping[str, str]) -> None:
        self._waiting: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        with namespaces.inside(namespace):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "attacks.driver"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=_HERE.parent,
                env={**os.environ, **environment, "PYTHONPATH": str(_HERE.parent)},
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the sandboxes that were made, and the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        self._process.stdout.close()

    def create(self, network: Mapping[str, list[str]]) -> str:
        """A sandbox with the programs in it; its id."""
        sandbox: str = self.begin("create", network=network).result(60)
        return sandbox

    def open(self, sandbox: str, *command: str) -> Conversation:
        """A command run as root that answers lines."""
        self.begin("open", sandbox=sandbox, command=command).result(60)
        return Conversation(self, sandbox)

    def update(self, sandbox: str, network: Mapping[str, list[str]]) -> None:
        """Replace its policy."""
        self.begin("update", sandbox=sandbox, network=network).result(60)

    def run(self, sandbox: str, *command: str, seconds: float = 60) -> str:
        """Standard output of a command run as root. Raises RuntimeError if it fails."""
        return self.start(sandbox, *command, seconds=seconds).result(seconds + 10)

    def start(self, sandbox: str, *command: str, seconds: float = 60) -> Future[str]:
        """The same, under way."""
        return self.begin("run", sandbox=sandbox, command=command, seconds=seconds)

    def begin(self, call: str, **arguments: object) -> Future[Any]:
        """Send a request."""
        future: Future[Any] = Future()
        assert self._process.stdin is not None
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = future
            request = {"number": number, "call": call, "arguments": arguments}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return future

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            reply = json.loads(line)
            future = self._waiting.pop(reply["number"])
            if "error" in reply:
                future.set_exception(RuntimeError(reply["error"]))
            else:
                future.set_result(reply["result"])
        for future in self._waiting.values():
            future.set_exception(RuntimeError("the driver has ended"))


@dataclass(frozen=True, slots=True)
class Conversation:
    """A command in a sandbox that answers each line with a line."""

    driver: Driver
    sandbox: str

    def ask(self, line: str) -> str:
        """Its answer. For one thread at a time."""
        answer: str = self.driver.begin("ask", sandbox=self.sandbox, line=line).result(90)
        return answer


class _Service:
    """The side of the SDK."""

    def __init__(self) -> None:
        self._sandboxes: dict[str, Sandbox] = {}
        self._printing = threading.Lock()
        self._open: dict[str, tuple[int, queue.SimpleQueue[str]]] = {}

    def serve(self) -> None:
        with ThreadPoolExecutor(16) as pool:
            for line in sys.stdin:
                pool.submit(self._answer, json.loads(line))
            for sandbox in self._sandboxes.values():
                sandbox.kill()  # which ends what still runs there

    def _answer(self, request: dict[str, Any]) -> None:
        reply = {"number": request["number"]}
        try:
            reply["result"] = getattr(self, request["call"])(**request["arguments"])
        except Exception as error:  # whatever it is, the tests raise it
            reply["error"] = f"{type(error).__name__}: {error}"
        with self._printing:
            print(json.dumps(reply), flush=True)

    def create(self, network: dict[str, list[str]]) -> str:
        sandbox = Sandbox.create(timeout=1800, network=network)  # type: ignore[arg-type]  # a dict is what JSON gives
        self._sandboxes[sandbox.sandbox_id] = sandbox
        for path in PROGRAMS:
            sandbox.files.write(f"{HOME}/programs/{path.name}", path.read_text(), user="root")
        return sandbox.sandbox_id

    def update(self, sandbox: str, network: dict[str, list[str]]) -> None:
        self._sandboxes[sandbox].update_network(network)  # type: ignore[arg-type]  # as above

    def run(self, sandbox: str, command: list[str], seconds: float) -> str:
        try:
            done = self._sandboxes[sandbox].commands.run(
                shlex.join(command), user="root", cwd=HOME, timeout=seconds
            )
        except CommandExitException as failed:
            raise RuntimeError(f"{command}: {failed.stderr}") from None
        return done.stdout

    def open(self, sandbox: str, command: list[str]) -> None:
        handle = self._sandboxes[sandbox].commands.run(
            shlex.join(command), user="root", cwd=HOME, timeout=0, background=True, stdin=True
        )
        answers: queue.SimpleQueue[str] = queue.SimpleQueue()

        def read() -> None:
            text = ""
            with suppress(SandboxException):  # the sandbox is killed at the end
                for out, err, _ in handle:
                    text += out or err or ""
                    *lines, text = text.split("\n")
                    for line in lines:
                        answers.put(line)

        threading.Thread(target=read, daemon=True).start()
        self._open[sandbox] = handle.pid, answers

    def ask(self, sandbox: str, line: str) -> str:
        process, answers = self._open[sandbox]
        self._sandboxes[sandbox].commands.send_stdin(process, line + "\n")
        return answers.get(timeout=80)

    def host(self, sandbox: str, port: int) -> str:
        return self._sandboxes[sandbox].get_host(port)

    def kill(self, sandbox: str) -> None:
        self._sandboxes.pop(sandbox).kill()


if __name__ == "__main__":
    _Service().serve()
