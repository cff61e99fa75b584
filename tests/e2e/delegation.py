"""Runs the end-to-end tests in a process of their own when other tests share the session.

The pytest process of the end-to-end tests lives in the node's network namespace, so that the SDK
reaches the node's loopback. A process can only move there as long as it has a single thread: the
SDK's HTTP stack starts threads that stay where they were born. So when the session has run other
tests, a child pytest takes the end-to-end tests, and its reports are replayed here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict

import pytest

_REPORTS = "SANDGATE_TEST_REPORTS"
_END_SECONDS = 90


class Delegate:
    """The child, and the reports that have come from it."""

    def __init__(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self._config = config
        self._reports: dict[str, list[pytest.TestReport]] = defaultdict(list)
        # Files, not pipes: the child never has to wait until somebody reads.
        self._arrived = tempfile.NamedTemporaryFile("r", suffix="-reports", encoding="utf-8")
        self._output = tempfile.TemporaryFile("w+")
        self._partial = ""
        # Should this process be killed, the child cleans up.
        command = ["setpriv", "--pdeathsig", "INT", sys.executable, "-m", "pytest", "-q"]
        self._process = subprocess.Popen(
            [*command, "-p", "no:cacheprovider", *(item.nodeid for item in items)],
            cwd=config.rootpath,
            env={**os.environ, _REPORTS: self._arrived.name},
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def run(self, item: pytest.Item) -> None:
        """Replay what the child reports of one test."""
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        while not any(report.when == "teardown" for report in self._reports[item.nodeid]):
            line = self._next_line()
            if line is None:
                self._reports[item.nodeid].append(self._lost(item))
                break
            report = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=json.loads(line)
            )
            self._reports[report.nodeid].append(report)
        for report in self._reports.pop(item.nodeid):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def _next_line(self) -> str | None:
        """The next report, or None if the child has ended and there is none."""
        while True:
            ended = self._process.poll() is not None
            self._partial += self._arrived.readline()
            if self._partial.endswith("\n"):
                line, self._partial = self._partial, ""
                return line
            if ended:
                return None
            time.sleep(0.05)

    def end(self) -> None:
        """Let the child clean up, and make it if it has not finished."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._arrived.close()
        self._output.close()

    def _lost(self, item: pytest.Item) -> pytest.TestReport:
        self._output.seek(0)
        output = self._output.read()

        def fail() -> None:
            pytest.fail(f"the end-to-end tests' process ended early:\n{output[-4000:]}", False)

        call = pytest.CallInfo.from_call(fail, "call")
        return pytest.TestReport.from_item_and_call(item, call)


def report_to_parent(config: pytest.Config, report: pytest.TestReport) -> None:
    """In the child: pass a report on."""
    if _REPORTS in os.environ:
        data = config.hook.pytest_report_to_serializable(config=config, report=report)
        with open(os.environ[_REPORTS], "a", encoding="utf-8") as file:
            file.write(json.dumps(data) + "\n")
