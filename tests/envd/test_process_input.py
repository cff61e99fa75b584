"""`process.Process`: input, and terminals."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator

import httpx

from envd.harness import Json, frame, frames, outcome, pid_selector, start, stdin, stream, unary


def test_stdin_is_written_and_closed(client: httpx.Client) -> None:
    with stream(client, "Start", {"process": {"cmd": "cat"}}) as opened:
        pid = opened.event()["start"]["pid"]
        for text in (b"one ", b"two"):
            message = {**pid_selector(pid), "input": stdin(text)}
            assert unary(client, "SendInput", message).json() == {}
        assert unary(client, "CloseStdin", pid_selector(pid)).status_code == 200
        assert outcome(opened).stdout == b"one two"


def test_closing_stdin_twice_is_no_error_but_writing_then_is(client: httpx.Client) -> None:
    with stream(client, "Start", {**start("sleep 60"), "stdin": True}) as opened:
        pid = opened.event()["start"]["pid"]
        for _ in range(2):
            assert unary(client, "CloseStdin", pid_selector(pid)).status_code == 200
        answer = unary(client, "SendInput", {**pid_selector(pid), "input": stdin(b"x")})
        assert answer.status_code == 500 and "closed" in answer.json()["message"]
        unary(client, "SendSignal", {**pid_selector(pid), "signal": "SIGNAL_SIGKILL"})


def test_input_goes_only_where_there_is_one(client: httpx.Client) -> None:
    with stream(client, "Start", start("sleep 60")) as opened:
        pid = opened.event()["start"]["pid"]
        cases: list[tuple[Json, int, str]] = [
            (stdin(b"x"), 500, "stdin not enabled"),
            ({"pty": "eA=="}, 500, "no terminal"),
            ({"other": "eA=="}, 501, "stdin or pty"),
            ({"stdin": "***"}, 400, "base64"),
        ]
        for data, status, text in cases:
            answer = unary(client, "SendInput", {**pid_selector(pid), "input": data})
            assert answer.status_code == status and text in answer.json()["message"]
        resized = unary(client, "Update", {**pid_selector(pid), "pty": {"size": {"cols": 1}}})
        assert resized.json()["code"] == "internal"
        unary(client, "SendSignal", {**pid_selector(pid), "signal": "SIGNAL_SIGKILL"})


def test_a_stream_of_input_is_written_as_it_arrives(client: httpx.Client) -> None:
    with stream(client, "Start", {"process": {"cmd": "cat"}}) as opened:
        pid = opened.event()["start"]["pid"]

        def messages() -> Iterator[bytes]:
            yield frame({"start": {"process": {"pid": pid}}})
            for text in (b"first", b"second"):
                yield frame({"data": {"input": stdin(text)}})
                # Only what has been echoed lets the next one go.
                assert b64decode(opened.event()["data"]["stdout"]) == text
                yield frame({"keepalive": {}})

        response = client.post("/process.Process/StreamInput", content=messages())
        assert list(frames(iter([response.content]))) == [(0, {}), (2, {})]
        unary(client, "CloseStdin", pid_selector(pid))
        assert outcome(opened).exit_code == 0


def test_a_stream_of_input_needs_a_process_first(client: httpx.Client) -> None:
    for message, code in (
        ({"data": {"input": stdin(b"x")}}, "invalid_argument"),
        ({"start": {"process": {"pid": 999999}}}, "not_found"),
        ({}, "unimplemented"),
    ):
        response = client.post("/process.Process/StreamInput", content=frame(message))
        ((_, end),) = frames(iter([response.content]))
        assert end["error"]["code"] == code


def test_input_waits_for_a_command_that_does_not_read(client: httpx.Client) -> None:
    script = "sleep 0.3; head -c 1000000 | md5sum"
    with stream(client, "Start", {**start(script), "stdin": True}) as opened:
        pid = opened.event()["start"]["pid"]
        sent = unary(client, "SendInput", {**pid_selector(pid), "input": stdin(b"a" * 1_000_000)})
        assert sent.status_code == 200
        assert outcome(opened).stdout.startswith(b"7707d6ae4e027c70eea2a935c2296f21")


def test_a_command_that_never_reads_ends_the_input_by_the_calls_timeout(
    client: httpx.Client,
) -> None:
    with stream(client, "Start", {**start("sleep 60"), "stdin": True}) as opened:
        pid = opened.event()["start"]["pid"]
        message = {**pid_selector(pid), "input": stdin(b"a" * 1_000_000)}
        answer = unary(client, "SendInput", message, **{"Connect-Timeout-Ms": "200"})
        assert answer.status_code == 504 and answer.json()["code"] == "deadline_exceeded"
        unary(client, "SendSignal", {**pid_selector(pid), "signal": 15})
        assert outcome(opened).end["status"] == "signal: terminated"


def test_a_terminal_has_its_size_echo_and_session(client: httpx.Client) -> None:
    request = start("stty size; tty; ls -l $(tty) | cut -d' ' -f3; trap 'stty size; exit 3' WINCH; "
                    "echo ready; while :; do sleep 0.05; done")  # fmt: skip
    request["pty"] = {"size": {"cols": 91, "rows": 23}}
    seen = b""
    with stream(client, "Start", request) as opened:
        pid = opened.event()["start"]["pid"]
        while b"ready" not in seen:
            seen += b64decode(opened.event()["data"]["pty"])
        assert seen.startswith(b"23 91\r\n/dev/pts/") and b"\r\nuser\r\n" in seen
        size = {"pty": {"size": {"cols": 132, "rows": 43}}}
        assert unary(client, "Update", {**pid_selector(pid), **size}).json() == {}
        result = outcome(opened)
    assert result.pty.endswith(b"43 132\r\n") and result.exit_code == 3


def test_a_terminal_reads_its_input_and_hangs_up(client: httpx.Client) -> None:
    request: Json = {
        "process": {"cmd": "/bin/bash", "args": ["-i", "-l"], "envs": {"TERM": "xterm"}},
        "pty": {"size": {"cols": 80, "rows": 24}},
    }
    with stream(client, "Start", request) as opened:
        pid = opened.event()["start"]["pid"]
        message = {**pid_selector(pid), "input": {"pty": b64encode(b"exit 9\n").decode()}}
        assert unary(client, "SendInput", message).json() == {}
        wrong = unary(client, "SendInput", {**pid_selector(pid), "input": stdin(b"x")})
        assert wrong.status_code in (404, 500)
        assert outcome(opened).exit_code == 9


def test_stdin_of_a_terminal_cannot_be_closed(client: httpx.Client) -> None:
    request = {**start("sleep 60"), "pty": {"size": {"cols": 80, "rows": 24}}}
    with stream(client, "Start", request) as opened:
        pid = opened.event()["start"]["pid"]
        answer = unary(client, "CloseStdin", pid_selector(pid))
        assert answer.json()["code"] == "unknown" and "Ctrl+D" in answer.json()["message"]
        unary(client, "SendSignal", {**pid_selector(pid), "signal": "SIGNAL_SIGKILL"})
        assert outcome(opened).end["status"] == "signal: killed"
