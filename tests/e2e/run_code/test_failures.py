"""`run_code` when something breaks: code, kernels, clients, disks."""

from __future__ import annotations

import json
import threading

import httpx
import pytest
from e2b_code_interpreter import Sandbox

from e2e.box import until
from e2e.run_code.helpers import PORT, Make, error_of, health, outcome, trust, works

pytestmark = pytest.mark.timeout(120)


def leave(sandbox: Sandbox, code: str, language: str, first: str = "stdout") -> None:
    """Run code and hang up at the first line of a kind."""
    url = f"https://{sandbox.get_host(PORT)}/execute"
    body = {"code": code, "language": language}
    lines: list[str] = []
    with httpx.stream("POST", url, json=body, timeout=30, verify=trust()) as response:
        for line in response.iter_lines():
            if json.loads(line)["type"] == first:
                return
            lines.append(line)
    raise AssertionError(f"it ended by itself: {response.status_code}, {lines}")


@pytest.mark.parametrize(
    ("language", "code", "name", "value"),
    [
        ("python", "def f(): 1 / 0\nf()", "ZeroDivisionError", "division by zero"),
        ("python", "x =", "SyntaxError", "invalid syntax"),
        ("python", "display({'application/json': object()}, raw=True)", "TypeError", "JSON"),
        ("python", "class A:\n def __repr__(s): raise OSError('no')\nA()", "OSError", "no"),
        ("python", "input()", "StdinNotImplementedError", "input"),
        ("js", "null.x", "TypeError", "properties of null"),
        ("js", "let y = ;", "SyntaxError", "Unexpected token"),
        ("js", "throw 5", "UncaughtException", "5"),
        ("bash", "(exit 3)", "CommandFailed", "exit status 3"),
        ("bash", "echo 'unclosed", "CommandFailed", "exit status"),
        ("r", "stop('bad')", "ERROR", "bad"),
    ],
)
def test_what_fails_says_so(
    sandbox: Sandbox, language: str, code: str, name: str, value: str
) -> None:
    execution = sandbox.run_code(code, language=language)
    told = error_of(execution)
    assert told[0] == name and value in told[1]
    assert execution.error is not None
    if language == "python" and name != "SyntaxError":
        assert name in execution.error.traceback
    if language != "r":
        works(sandbox, language=language)


@pytest.mark.parametrize(
    ("language", "code", "why"),
    [
        ("python", "import os; os._exit(5)", "exit code 5"),
        ("python", "import os; os.kill(os.getpid(), 9)", "killed"),
        ("python", "import ctypes; ctypes.string_at(0)", "signal 11"),
        ("python", "x = [bytearray(b'1' * 50_000_000) for _ in range(20)]", "memory"),
        ("python", "import os, time; os.kill(os.getppid(), 9); time.sleep(30)", "killed"),
        ("js", "process.exit(3)", "exit code 3"),
        ("bash", "exit 3", "exit code 3"),
    ],
)
def test_code_that_ends_its_kernel_ends_nothing_else(
    sandbox: Sandbox, language: str, code: str, why: str
) -> None:
    name, value = error_of(sandbox.run_code(code, language=language))
    assert name == "UnexpectedEndOfExecution" and why in value
    works(sandbox, language=language)


def test_a_kernel_that_dies_between_two_calls_is_replaced(sandbox: Sandbox) -> None:
    late = "import os, threading; threading.Timer(0.2, os._exit, (1,)).start(); os.getpid()"
    pid = sandbox.run_code(late).text
    sandbox.commands.run(f"while [ -d /proc/{pid} ]; do sleep 0.05; done")
    works(sandbox)


@pytest.mark.parametrize(
    ("code", "name", "value"),
    [
        ("raise ExceptionGroup('several', [ValueError(1)])", "ExceptionGroup", "several"),
        (
            "import asyncio\nasync def fail(): raise KeyError('k')\n"
            "async with asyncio.TaskGroup() as group: group.create_task(fail())",
            "ExceptionGroup",
            "unhandled errors in a TaskGroup",
        ),
        ("%nosuchmagic", "UsageError", "not found"),
    ],
)
def test_a_failure_that_is_only_printed_is_an_error_too(
    sandbox: Sandbox, code: str, name: str, value: str
) -> None:
    assert sandbox.run_code("1 / 0").error is not None
    execution = sandbox.run_code(code)
    told = error_of(execution)
    assert told[0] == name and value in told[1]
    assert name in "".join(execution.logs.stderr)
    works(sandbox)


@pytest.mark.parametrize(("language", "leave"), [("python", "exit()"), ("r", "quit()")])
def test_code_that_exits_fails_neither_itself_nor_the_next_call(
    sandbox: Sandbox, language: str, leave: str
) -> None:
    """Its kernel goes on for a tenth of a second; what ran then used to end with it."""
    before, wait, after = {
        "python": (
            "kept = 1",
            "import asyncio; await asyncio.sleep(0.5)\nprint('kept' in globals())",
            "False",
        ),
        "r": ("kept <- 1", "Sys.sleep(0.5); exists('kept')", "[1] FALSE"),
    }[language]
    assert sandbox.run_code(f"{before}\n{leave}", language=language).error is None
    execution = sandbox.run_code(wait, language=language)
    assert execution.error is None
    assert outcome(execution) == [after]


def test_an_interpreter_that_was_killed_is_started_again(sandbox: Sandbox) -> None:
    works(sandbox)
    sandbox.commands.run("(pkill -9 -f sandgate.interprete[r])", user="root")
    until(lambda: httpx.get(health(sandbox), verify=trust(), timeout=30).text == "OK", 15)
    works(sandbox)


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "print(1, flush=True)\nwhile True: pass"),
        ("python", "print(1, flush=True)\nimport time; time.sleep(1000)"),
        ("python", "while True: print('y' * 1000)"),
        ("python", "import os; print(os.system('echo 1; sleep 1000'))"),
        ("js", "console.log(1); while (true) {}"),
        ("js", "console.log(1); await new Promise(() => {})"),
        ("js", "for (;;) console.log('yyyy')"),
        ("bash", "echo 1; while true; do :; done"),
        ("bash", "echo 1; sleep 1000"),
        ("bash", "while true; do echo yyyy; done"),
    ],
)
def test_code_whose_client_left_is_interrupted_and_keeps_its_variables(
    sandbox: Sandbox, language: str, code: str
) -> None:
    sandbox.run_code({"bash": "kept=7"}.get(language, "kept = 7"), language=language)
    leave(sandbox, code, language)
    shown = sandbox.run_code({"bash": "echo $kept"}.get(language, "kept"), language=language)
    assert outcome(shown) == ["7"]


def test_who_leaves_while_waiting_does_not_disturb_what_runs(sandbox: Sandbox) -> None:
    url = f"https://{sandbox.get_host(PORT)}/execute"
    code = "import time; print('runs', flush=True); time.sleep(1.5); print('done')"
    body = {"code": code, "language": "python"}
    with httpx.stream("POST", url, json=body, timeout=30, verify=trust()) as response:
        lines = response.iter_lines()
        while "runs" not in next(lines):
            pass
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=dict(body, code="never = 1"), timeout=0.5, verify=trust())
        assert [json.loads(line)["type"] for line in lines] == ["stdout", "end_of_execution"]
    assert sandbox.run_code("'never' in globals()").text == "False"


@pytest.mark.long
def test_code_that_defies_interrupts_is_killed(sandbox: Sandbox) -> None:
    stubborn = "while True:\n try: time.sleep(9)\n except BaseException: 0"
    code = f"import time\nprint(1, flush=True)\n{stubborn}"
    leave(sandbox, code, "python")
    works(sandbox)


@pytest.mark.parametrize(("call", "name"), [("restart", "Restarting"), ("remove", "Removed")])
def test_who_runs_code_in_a_context_is_told_when_it_ends(
    sandbox: Sandbox, call: str, name: str
) -> None:
    context = sandbox.create_code_context()
    end = {"restart": sandbox.restart_code_context, "remove": sandbox.remove_code_context}[call]
    begun = threading.Event()

    def then_end() -> None:
        begun.wait(30)
        end(context)

    ender = threading.Thread(target=then_end)
    ender.start()
    execution = sandbox.run_code(
        "print(1, flush=True)\nimport time; time.sleep(1000)",
        context=context,
        on_stdout=lambda _: begun.set(),
    )
    ender.join()
    assert error_of(execution)[0] == f"Context{name}"


def test_a_full_disk_stops_no_kernel(make: Make) -> None:
    sandbox = make()
    fill = "dd if=/dev/zero of=/full bs=64k 2>/dev/null; dd if=/dev/zero of=/rest bs=1 count=70000"
    filled = sandbox.commands.run(f"{fill} 2>&1 | head -1", user="root", timeout=60)
    assert "No space left" in filled.stdout
    for language in ("python", "js", "bash"):
        works(sandbox, language=language)
    execution = sandbox.run_code("open('/home/user/more', 'w').write('x' * 100_000)")
    assert error_of(execution)[0] == "OSError"
    sandbox.run_code("import os; os._exit(1)")
    works(sandbox)
