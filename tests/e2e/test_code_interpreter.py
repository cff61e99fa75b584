"""`run_code` through the official SDK: what it answers, and what it survives."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from e2b_code_interpreter import AsyncSandbox, Execution, Sandbox
from e2b_code_interpreter.charts import LineChart

from e2e.box import until
from internet.node import Node

pytestmark = pytest.mark.timeout(120)

PORT = 49999
Make = Callable[..., Sandbox]


@pytest.fixture(scope="module")
def make(node: Node) -> Iterator[Make]:
    """Makes sandboxes that run code, and kills them."""
    made: list[Sandbox] = []

    def create(**options: Any) -> Sandbox:
        made.append(Sandbox.create(timeout=600, **options))
        return made[-1]

    yield create
    for sandbox in made:
        sandbox.kill()


@pytest.fixture(scope="module")
def sandbox(make: Make) -> Sandbox:
    """One for all tests that leave it as it was."""
    return make(envs={"FROM": "sandbox"})


def works(sandbox: Sandbox, **options: Any) -> None:
    """The next call is answered as if nothing had happened."""
    code = "echo 42" if options.get("language") == "bash" else "40 + 2"
    execution = sandbox.run_code(code, **options)
    assert execution.error is None
    assert [execution.text, *execution.logs.stdout][-1] in ("42", "42\n")


def outcome(execution: Execution) -> list[str]:
    """Everything it said and is, as text."""
    values = [str(result.text).strip() for result in execution.results]
    return [*(line.strip() for line in execution.logs.stdout), *values]


def error_of(execution: Execution) -> tuple[str, str]:
    """Name and text of its error."""
    assert execution.error is not None, execution
    return execution.error.name, execution.error.value


def post(sandbox: Sandbox, path: str, body: object) -> httpx.Response:
    """A plain request to the interpreter."""
    url = f"https://{sandbox.get_host(PORT)}{path}"
    return httpx.post(url, json=body, timeout=30, verify=_trust())


def leave(sandbox: Sandbox, code: str, language: str, first: str = "stdout") -> None:
    """Run code and hang up at the first line of a kind."""
    url = f"https://{sandbox.get_host(PORT)}/execute"
    body = {"code": code, "language": language}
    lines: list[str] = []
    with httpx.stream("POST", url, json=body, timeout=30, verify=_trust()) as response:
        for line in response.iter_lines():
            if json.loads(line)["type"] == first:
                return
            lines.append(line)
    raise AssertionError(f"it ended by itself: {response.status_code}, {lines}")


def _trust() -> Any:
    import ssl

    return ssl.create_default_context()


def test_nothing_runs_before_the_first_call_and_nothing_is_needed_for_it(make: Make) -> None:
    sandbox = make()
    processes = "ls /proc | grep -c '^[0-9]*$'"
    before = int(sandbox.commands.run(processes).stdout)
    execution = sandbox.run_code("print(1)")
    assert execution.logs.stdout == ["1\n"]
    assert execution.execution_count == 1
    # The interpreter's first process, its server and the kernel.
    assert int(sandbox.commands.run(processes).stdout) == before + 3
    assert sandbox.commands.run(f"curl -s http://127.0.0.1:{PORT}/health").stdout == "OK"


@pytest.mark.parametrize(
    ("language", "code", "expected"),
    [
        (None, "x = 6\nx * 7", ["42"]),
        ("python", "'quotes'", ["quotes"]),
        ("python", "import asyncio; await asyncio.sleep(0); 1", ["1"]),
        ("python", "!echo shell", ["shell"]),
        ("javascript", "console.log('out'); process.cwd()", ["out", "/home/user"]),
        ("js", "const q = 1; function f(n) { return n < 2 ? 1 : n * f(n - 1) }; f(5)", ["120"]),
        ("js", "const q = 2; let { a: [b] } = { a: [40] }; class K {}; q + b", ["42"]),
        ("js", "import { join } from 'node:path'\nawait Promise.resolve(join('a', 'b'))", ["a/b"]),
        ("js", "({ a: 1 })", ["{ a: 1 }"]),
        ("js", "require('child_process').execSync('echo c', { stdio: 'inherit' }); 1", ["c", "1"]),
        ("ts", "enum E { A, B }\nconst m: string = 'hi'; console.log(m); E.B", ["hi", "1"]),
        ("bash", "cd /tmp; y=5; pwd", ["/tmp"]),
        ("bash", "pwd; echo $y", ["/tmp\n5"]),
        ("r", "sum(1:4); getwd()", ["[1] 10", '[1] "/home/user"']),
        ("r", 'print("out")', ['[1] "out"']),
    ],
)
def test_a_language_runs(
    sandbox: Sandbox, language: str | None, code: str, expected: list[str]
) -> None:
    execution = sandbox.run_code(code, language=language)
    assert execution.error is None
    assert outcome(execution) == expected


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "import os; [os.getenv(n, '-') for n in ('FROM', 'CALL')]"),
        ("js", "[process.env.FROM ?? '-', process.env.CALL ?? '-']"),
        ("bash", "echo \"['${FROM--}', '${CALL--}']\""),
        ("r", "cat('[', Sys.getenv('FROM', '-'), Sys.getenv('CALL', '-'), ']')"),
    ],
)
def test_variables_of_a_call_are_gone_after_it(sandbox: Sandbox, language: str, code: str) -> None:
    def run(**envs: str) -> list[str]:
        told = outcome(sandbox.run_code(code, language=language, envs=envs))[0]
        return [
            word for word in told.replace("'", " ").replace(",", " ").split() if word not in "[]"
        ]

    assert run() == ["sandbox", "-"]
    assert run(FROM="me", CALL="x$y") == ["me", "x$y"]
    assert run() == ["sandbox", "-"]


def test_every_mime_type_has_its_field(sandbox: Sandbox) -> None:
    kinds = {
        "text": ("text/plain", "t"),
        "html": ("text/html", "<b>h</b>"),
        "markdown": ("text/markdown", "*m*"),
        "svg": ("image/svg+xml", "<svg/>"),
        "png": ("image/png", "iVBO"),
        "jpeg": ("image/jpeg", "/9j/"),
        "pdf": ("application/pdf", "JVBE"),
        "latex": ("text/latex", "$l$"),
        "json": ("application/json", {"a": [1, None]}),
        "javascript": ("application/javascript", "1"),
        "data": ("e2b/data", {"a": [1]}),
        "extra": ("application/x-own", {"z": 1}),
    }
    bundle = dict(kinds.values())
    (result,) = sandbox.run_code(f"display({bundle!r}, raw=True)").results
    for field, (kind, value) in kinds.items():
        wanted = {kind: value} if field == "extra" else value
        assert getattr(result, field) == wanted, field
    assert not result.is_main_result


def test_a_data_frame_comes_with_its_values(sandbox: Sandbox) -> None:
    code = "import pandas as pd; pd.DataFrame({'a': [1, 2], 'b': [.5, None], 't': pd.Timestamp(0)})"
    (result,) = sandbox.run_code(code).results
    times = ["1970-01-01T00:00:00.000"] * 2
    assert result.data == {"a": [1, 2], "b": [0.5, None], "t": times}
    assert result.html and result.text and result.is_main_result


def test_a_plot_comes_as_picture_and_as_chart(sandbox: Sandbox) -> None:
    execution = sandbox.run_code(
        "import matplotlib.pyplot as plt\n"
        "plt.plot([1, 2, 3], [1, 4, 9], label='squares')\n"
        "plt.title('Growth'); plt.xlabel('n'); plt.show()"
    )
    (result,) = execution.results
    assert result.png is not None and not result.is_main_result
    width, height, colours = picture(base64.b64decode(result.png))
    assert (width, height) > (400, 300) and colours > 10
    assert isinstance(result.chart, LineChart)
    assert (result.chart.title, result.chart.x_label) == ("Growth", "n")
    assert result.chart.elements[0].points == [(1.0, 1.0), (2.0, 4.0), (3.0, 9.0)] or [
        list(point) for point in result.chart.elements[0].points
    ] == [[1.0, 1.0], [2.0, 4.0], [3.0, 9.0]]


def picture(png: bytes) -> tuple[int, int, int]:
    """Width, height, and how many different lines of pixels a PNG has."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, pixels, width, height = 8, b"", 0, 0
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        body = png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height = struct.unpack(">II", body[:8])
        elif kind == b"IDAT":
            pixels += body
        at += length + 12
    data = zlib.decompress(pixels)
    line = len(data) // height
    return width, height, len({data[i : i + line] for i in range(0, len(data), line)})


def test_pictures_are_shown_when_shown_or_saved(sandbox: Sandbox) -> None:
    code = "from PIL import Image; i = Image.new('RGB', (4, 4)); i.show(); i.save('/tmp/i.png')"
    results = sandbox.run_code(code).results
    assert len(results) == 2
    assert all(base64.b64decode(result.png).startswith(b"\x89PNG") for result in results)


def test_output_is_in_order_and_arrives_while_the_code_runs(sandbox: Sandbox) -> None:
    seen: list[tuple[str, str]] = []
    code = (
        "import sys\nfor i in range(3): print(i); print(-i, file=sys.stderr)\ndisplay(9)\nprint(10)"
    )
    sandbox.run_code(
        code,
        on_stdout=lambda line: seen.append(("out", str(line).strip())),
        on_stderr=lambda line: seen.append(("err", str(line).strip())),
        on_result=lambda result: seen.append(("res", str(result.text))),
    )
    printed = [(kind, str(n)) for i in range(3) for kind, n in (("out", i), ("err", -i))]
    assert seen == [*printed, ("res", "9"), ("out", "10")]


@pytest.mark.parametrize("code", ["'é' * 10_000_000", "print('é' * 10_000_000)"])
def test_ten_megabytes_arrive_whole(sandbox: Sandbox, code: str) -> None:
    execution = sandbox.run_code(code)
    assert (execution.text or "".join(execution.logs.stdout).strip()) == "é" * 10_000_000


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
    ("code", "shown"),
    [
        ("from IPython.display import JSON; JSON({'a': float('nan')})", {"a": None}),
        ("print('\\ud800')", "?"),
        ("print('a\\u2028b\\x85c')", "a\u2028b\x85c"),
    ],
)
def test_what_json_has_no_word_for_does_no_harm(sandbox: Sandbox, code: str, shown: object) -> None:
    execution = sandbox.run_code(code)
    assert execution.error is None and not execution.logs.stderr
    told = execution.results[0].json if execution.results else execution.logs.stdout[0].rstrip("\n")
    assert told == shown


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


def test_an_interpreter_that_was_killed_is_started_again(sandbox: Sandbox) -> None:
    works(sandbox)
    sandbox.commands.run("(pkill -9 -f sandgate.interprete[r])", user="root")
    until(lambda: httpx.get(_health(sandbox), verify=_trust(), timeout=30).text == "OK", 15)
    works(sandbox)


def _health(sandbox: Sandbox) -> str:
    return f"https://{sandbox.get_host(PORT)}/health"


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
    with httpx.stream("POST", url, json=body, timeout=30, verify=_trust()) as response:
        lines = response.iter_lines()
        while "runs" not in next(lines):
            pass
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=dict(body, code="never = 1"), timeout=0.5, verify=_trust())
        assert [json.loads(line)["type"] for line in lines] == ["stdout", "end_of_execution"]
    assert sandbox.run_code("'never' in globals()").text == "False"


@pytest.mark.long
def test_code_that_defies_interrupts_is_killed(sandbox: Sandbox) -> None:
    stubborn = "while True:\n try: time.sleep(9)\n except BaseException: 0"
    code = f"import time\nprint(1, flush=True)\n{stubborn}"
    leave(sandbox, code, "python")
    works(sandbox)


@pytest.mark.long
def test_silence_is_filled_with_keepalives(sandbox: Sandbox) -> None:
    body = {"code": "import time; time.sleep(12); 'over'"}
    lines = [json.loads(line) for line in post(sandbox, "/execute", body).text.splitlines()]
    kinds = [line["type"] for line in lines]
    expected = ["number_of_executions", "keepalive", "keepalive", "result", "end_of_execution"]
    assert kinds == expected


def test_the_lines_of_an_execution(sandbox: Sandbox) -> None:
    answer = post(sandbox, "/execute", {"code": "print(1)\n'x'", "language": None})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["type"] for line in lines] == [
        "number_of_executions",
        "stdout",
        "result",
        "end_of_execution",
    ]
    assert lines[2] == {"type": "result", "text": "x", "is_main_result": True}
    assert "T" in lines[1]["timestamp"]


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/execute", {"code": 5}, 400, "code: must be a string, not 5"),
        ("/execute", {}, 400, "code: must be a string"),
        ("/execute", {"code": "1", "language": "cobol"}, 400, "language 'cobol' is not offered"),
        ("/execute", {"code": "1", "context_id": "a"}, 404, "Context a not found"),
        ("/execute", {"code": "1", "context_id": "a", "language": "r"}, 400, "Only one of"),
        ("/execute", {"code": "1", "env_vars": {"1=": "x"}}, 400, "env_vars: '1=' is not a name"),
        ("/execute", {"code": "1", "env_vars": {"A": 1}}, 400, "env_vars: the value of A"),
        ("/execute", [], 400, "must be a JSON object"),
        ("/contexts", {"cwd": "/nowhere"}, 400, "cwd: '/nowhere' is not a directory"),
        ("/contexts", {"cwd": "here"}, 400, "cwd: must be an absolute path"),
        ("/contexts/nope/restart", {}, 404, "Context nope not found"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    sandbox: Sandbox, path: str, body: object, status: int, text: str
) -> None:
    answer = post(sandbox, path, body)
    assert answer.status_code == status
    assert text in answer.text


async def test_ten_contexts_at_once_each_with_its_own_state(node: Node) -> None:
    sandbox = await AsyncSandbox.create(timeout=300)
    try:
        contexts = [await sandbox.create_code_context(cwd="/tmp") for _ in range(10)]
        listed = await sandbox.list_code_contexts()
        assert [one.language for one in listed[:2]] == ["python", "javascript"]
        assert [one.id for one in listed[2:]] == [one.id for one in contexts]
        runs = [
            sandbox.run_code(
                f"x = {n}\nimport time; time.sleep(1); import os; os.getcwd()", context=c
            )
            for n, c in enumerate(contexts)
        ]
        assert {run.text for run in await asyncio.gather(*runs)} == {"/tmp"}
        values = [await sandbox.run_code("x", context=context) for context in contexts]
        assert [value.text for value in values] == [str(n) for n in range(10)]
        await sandbox.restart_code_context(contexts[0])
        again = await sandbox.run_code("x", context=contexts[0])
        assert error_of(again) == ("NameError", "name 'x' is not defined")
        await sandbox.remove_code_context(contexts[1])
        assert contexts[1].id not in {one.id for one in await sandbox.list_code_contexts()}
    finally:
        await sandbox.kill()


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


def test_a_private_sandbox_wants_its_token_here_too(make: Make) -> None:
    sandbox = make(network={"allow_public_traffic": False})
    assert post(sandbox, "/execute", {"code": "1"}).status_code == 403
    works(sandbox)
    assert sandbox.create_code_context().id in {one.id for one in sandbox.list_code_contexts()}


def test_a_pause_keeps_the_variables(make: Make) -> None:
    sandbox = make()
    sandbox.run_code("x = 5")
    sandbox.pause()
    assert Sandbox.connect(sandbox.sandbox_id).run_code("x").text == "5"


def test_a_template_without_interpreter_has_no_such_port(make: Make) -> None:
    sandbox = make(template="base")
    assert httpx.get(_health(sandbox), verify=_trust(), timeout=30).status_code == 502
