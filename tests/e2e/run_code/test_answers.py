"""`run_code` through the official SDK: what it answers, and what it survives."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import zlib

import httpx
import pytest
from e2b_code_interpreter import AsyncSandbox, Sandbox
from e2b_code_interpreter.charts import LineChart

from e2e.run_code.helpers import PORT, Make, error_of, health, outcome, post, trust, works
from internet.node import Node

pytestmark = pytest.mark.timeout(120)


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
    assert httpx.get(health(sandbox), verify=trust(), timeout=30).status_code == 502
