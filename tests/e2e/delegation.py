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
from collections import defaultdict

import pytest

_PIPE = "SANDGATE_TEST_REPORTS"
_END_SECONDS = 90


class Delegate:
    """The child, and the reports that have come from it."""

    def __init__(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self._config = config
        self._reports: dict[str, list[pytest.TestReport]] = defaultdict(list)
        read_end, write_end = os.pipe()
        self._pipe = os.fdopen(read_end, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        self._process = subprocess.Popen(
            [*command, *(item.nodeid for item in items)],
            cwd=config.rootpath,
            env={**os.environ, _PIPE: str(write_end)},
            pass_fds=[write_end],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        os.close(write_end)

    def run(self, item: pytest.Item) -> None:
        """Replay what the child reports of one test."""
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        while not any(report.when == "teardown" for report in self._reports[item.nodeid]):
            line = self._pipe.readline()
            if not line:
                self._reports[item.nodeid].append(self._lost(item))
                break
            report = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=json.loads(line)
            )
            self._reports[report.nodeid].append(report)
        for report in self._reports.pop(item.nodeid):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def end(self) -> None:
        """Let the child clean up, and make it if it has not finished."""
        self._pipe.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _lost(self, item: pytest.Item) -> pytest.TestReport:
        output, _ = self._process.communicate(timeout=_END_SECONDS)

        def fail() -> None:
            pytest.fail(f"the end-to-end tests' process ended early:\n{output[-4000:]}", False)

        call = pytest.CallInfo.from_call(fail, "call")
        return pytest.TestReport.from_item_and_call(item, call)


def report_to_parent(config: pytest.Config, report: pytest.TestReport) -> None:
    """In the child: pass a report on."""
    if _PIPE in os.environ:
        data = config.hook.pytest_report_to_serializable(config=config, report=report)
        try:
            os.write(int(os.environ[_PIPE]), (json.dumps(data) + "\n").encode())
        except BrokenPipeError:
            pytest.exit("the parent is gone")
