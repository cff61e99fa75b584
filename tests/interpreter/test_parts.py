"""The parts of the interpreter that need neither Jupyter nor a sandbox."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandgate.interpreter import bash, environment, messages
from sandgate.interpreter.kernel import Request
from sandgate.interpreter.sink import Sink


@given(st.text(alphabet=st.characters(), max_size=200))
def test_a_line_is_one_line_to_every_client(text: str) -> None:
    line = messages.encode(messages.output("stdout", text)).decode("utf-8")
    assert line.splitlines() == [line.rstrip("\n")]
    # Two halves of a character, one after the other, are a character.
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    assert json.loads(line)["text"] == joined


def test_numbers_that_json_does_not_have_are_null() -> None:
    bundle = {"application/json": {"a": [float("nan"), 1.5, {"b": float("-inf")}]}}
    line = messages.encode(messages.result(bundle, main=True))
    assert json.loads(line)["json"] == {"a": [None, 1.5, {"b": None}]}


@pytest.mark.parametrize(
    ("plain", "text"),
    [("'a'", "a"), ('"it\'s"', "it's"), ("'", "'"), ("'a\"", "'a\""), ("[1]", "[1]"), ("", "")],
)
def test_a_string_is_shown_without_its_quotes(plain: str, text: str) -> None:
    assert messages.result({"text/plain": plain}, main=True)["text"] == text


def test_an_unknown_type_is_extra_and_what_is_none_is_left_out() -> None:
    assert messages.result({"a/b": 1, "text/html": None}, main=False) == {
        "type": "result",
        "is_main_result": False,
        "extra": {"a/b": 1},
    }


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ([], "must be an object"),
        ({"A B": "x"}, "'A B' is not a name"),
        ({"": "x"}, "'' is not a name"),
        ({"A": None}, "the value of A must be a string"),
        ({"A": "\0"}, "without NUL"),
    ],
)
def test_variables_that_cannot_be_set_are_refused(variables: object, complaint: str) -> None:
    with pytest.raises(ValueError, match="env_vars") as caught:
        environment.check(variables)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("code", "env", "printed", "status"),
    [
        ("echo $A", {"A": 'it\'s "x" $HOME'}, 'it\'s "x" $HOME\n', 0),
        ("false", {}, "", 1),
        ("A=changed; (exit 7)", {"A": "x"}, "", 7),
        ("echo 'open", {}, "", 2),
        ("cat; echo over", {}, "over\n", 0),
        ("echo 5 >&$EVENTS", {}, "", 1),
    ],
)
def test_bash_tells_the_status_and_restores_variables(
    code: str, env: dict[str, str], printed: str, status: int
) -> None:
    read, write = os.pipe()
    with open(read) as statuses:
        requests = (Request(code, env, {"EVENTS": str(write)}), Request("echo $A", {}, {}))
        lines = "".join(bash.script(request, write) for request in requests)
        done = subprocess.run(
            ["bash", "--norc"],
            input=f"A=kept\n{lines}",
            pass_fds=[write],
            capture_output=True,
            text=True,
            check=True,
        )
        os.close(write)
        assert done.stdout == f"{printed}kept\n"
        assert statuses.read() == f"{status}\n0\n"


async def test_a_sink_holds_back_who_writes_until_somebody_reads() -> None:
    sink = Sink()
    await sink.put(messages.output("stdout", "x" * (5 << 20)))
    late = asyncio.create_task(sink.put(messages.END))
    await asyncio.sleep(0)
    assert not late.done()
    first = await sink.take(1)
    assert first is not None and len(first) > 5 << 20
    await late
    assert await sink.take(1) == messages.encode(messages.END)
    assert await sink.take(0.01) is None


async def test_a_closed_sink_holds_nobody() -> None:
    sink = Sink()
    waiting: list[Any] = [
        asyncio.create_task(sink.put(messages.output("stdout", "x" * (5 << 20)))) for _ in range(3)
    ]
    await asyncio.sleep(0)
    await sink.close()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
