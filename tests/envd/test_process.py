"""`process.Process` over plain HTTP: what the SDKs do not show, and bad input."""

from __future__ import annotations

import json
import os
import time
from base64 import b64decode
from pathlib import Path

import httpx
import pytest

from envd.harness import (
    Daemon,
    Json,
    basic,
    frame,
    frames,
    outcome,
    pid_selector,
    run,
    start,
    stdin,
    stream,
    unary,
)


def test_events_are_start_then_data_then_one_end(client: httpx.Client) -> None:
    with stream(client, "Start", start("echo out; echo err >&2")) as opened:
        events = opened.rest()
    kinds = [next(iter(event)) for event in events]
    assert kinds[0] == "start" and kinds[-1] == "end" and set(kinds[1:-1]) == {"data"}
    assert events[-1]["end"] == {"exitCode": 0, "exited": True, "status": "exit status 0"}
    assert opened.end == {}


@pytest.mark.parametrize(
    ("script", "end"),
    [
        ("exit 7", {"exitCode": 7, "exited": True, "status": "exit status 7"}),
        ("kill -KILL $$", {"exitCode": -1, "status": "signal: killed"}),
        ("kill -SEGV $$", {"exitCode": -1, "status": "signal: segmentation fault"}),
        ("kill -USR1 $$", {"exitCode": -1, "status": "signal: user defined signal 1"}),
        ("kill -XCPU $$", {"exitCode": -1, "status": "signal: CPU time limit exceeded"}),
    ],
)
def test_a_failed_command_ends_with_its_status(
    client: httpx.Client, script: str, end: Json
) -> None:
    assert run(client, start(f"ulimit -c 0; {script}")).end == {**end, "error": end["status"]}


def test_a_command_has_the_user_environment_and_directory_it_was_given(
    client: httpx.Client, daemon: Daemon
) -> None:
    (daemon.root / "home/user/dir with space").mkdir(exist_ok=True)
    script = "id -un; id -G; pwd; umask; echo $FROM_CREATE $FROM_CALL; cat /proc/self/oom_score_adj"
    cases = {
        "user": ("user", "1000 29", "/home/user/dir with space"),
        "other": ("other", "1001 29", "/home/other"),
        "root": ("root", "0", "/root"),
    }
    own = int((daemon.root / "proc/1/oom_score_adj").read_text())
    for user, (name, groups, cwd) in cases.items():
        request = start(script, cwd=cwd, envs={"FROM_CALL": "call"})
        result = run(client, request, Authorization=basic(user))
        expected = f"{name}\n{groups}\n{cwd}\n0022\nyes call\n{own + 300}\n"
        assert result.stdout.decode() == expected


def test_a_command_starts_with_clean_signals_descriptors_and_session(
    client: httpx.Client,
) -> None:
    status = "grep -E '^(SigBlk|SigIgn)' /proc/self/status"
    script = f"{status}; ls /proc/self/fd; ps -o sid= -p $$; echo $$"
    lines = run(client, start(script)).stdout.decode().split("\n")
    # posix_spawn(3) itself leaves 32 and 33, which the C library keeps for itself, ignored.
    own = 0b11 << 31
    assert [int(line.split()[1], 16) & ~own for line in lines[:2]] == [0, 0]
    assert lines[2:6] == ["0", "1", "2", "3"], "3 is the directory that ls reads"
    assert lines[6].strip() == lines[7]


def test_a_command_of_a_user_has_no_capability_and_cannot_become_root(
    client: httpx.Client,
) -> None:
    script = "grep -E '^(CapEff|CapPrm|CapInh|CapAmb|Uid|Gid)' /proc/self/status"
    lines = dict(
        line.split(":\t", 1) for line in run(client, start(script)).stdout.decode().splitlines()
    )
    zero = "0" * 16
    uids = "\t".join(["1000"] * 4)
    assert lines == {
        "CapEff": zero, "CapPrm": zero, "CapInh": zero, "CapAmb": zero, "Uid": uids, "Gid": uids
    }  # fmt: skip
    script = "python3 -I -S -c 'import os; os.setresuid(0, 0, 0)'"
    assert b"PermissionError" in run(client, start(script)).stderr


def test_the_daemon_is_root_again_after_a_command_failed_to_start(
    client: httpx.Client, daemon: Daemon
) -> None:
    for request in (start("true", cwd="/root"), {"process": {"cmd": "/etc/passwd"}}):
        error = run(client, request).error
        assert error is not None and error["code"] == "invalid_argument"
    status = (daemon.root / "proc/1/status").read_text()
    assert "Uid:\t0\t0\t0\t0" in status and "Gid:\t0\t0\t0\t0" in status
    assert os.readlink(f"/proc/{daemon.pid}/cwd") == os.readlink(f"/proc/{daemon.pid}/root")


BAD_STARTS: list[tuple[Json, dict[str, str], str, str]] = [
    ({}, {}, "invalid_argument", "process is missing"),
    ({"process": {"cmd": ""}}, {}, "invalid_argument", "process.cmd is empty"),
    ({"process": {"cmd": 3}}, {}, "invalid_argument", "process.cmd must be a string"),
    ({"process": {"cmd": "no-such"}}, {}, "invalid_argument", "not found in PATH"),
    ({"process": {"cmd": "/no/such"}}, {}, "invalid_argument", "No such file"),
    ({"process": {"cmd": "/etc/passwd"}}, {}, "invalid_argument", "Permission denied"),
    ({"process": {"cmd": "a\0b"}}, {}, "invalid_argument", "NUL"),
    ({"process": {"cmd": "id", "args": "x"}}, {}, "invalid_argument", "list of strings"),
    ({"process": {"cmd": "id", "args": ["\ud800"]}}, {}, "invalid_argument", "Unicode"),
    ({"process": {"cmd": "id", "envs": {"A=B": "c"}}}, {}, "invalid_argument", "A=B"),
    ({"process": {"cmd": "id", "envs": {"": "c"}}}, {}, "invalid_argument", "variable"),
    (start("id", cwd="/nope"), {}, "invalid_argument", "cwd '/nope' does not exist"),
    (start("id", cwd="/root"), {}, "invalid_argument", "enter directory '/root'"),
    (start("id", cwd="~other"), {}, "invalid_argument", "user-specific home dir"),
    (start("id"), {"Authorization": basic("nobody-such")}, "unauthenticated", "nobody-such"),
    (start("id"), {"Connect-Timeout-Ms": "soon"}, "invalid_argument", "Connect-Timeout-Ms"),
    (
        {**start("id"), "pty": {"size": {"cols": 70000, "rows": 1}}},
        {},
        "invalid_argument",
        "70000",
    ),
]


@pytest.mark.parametrize(("request_", "headers", "code", "text"), BAD_STARTS)
def test_a_start_that_cannot_be_says_why_in_the_final_frame(
    client: httpx.Client, request_: Json, headers: dict[str, str], code: str, text: str
) -> None:
    error = run(client, request_, **headers).error
    assert error is not None
    assert error["code"] == code and text in error["message"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_argument"),
        (b"\0\0\0", "invalid_argument"),
        (b"\0\0\0\0\5hello", "invalid_argument"),
        (b"\0\0\0\0\2[]", "invalid_argument"),
        (b"\1\0\0\0\2{}", "unimplemented"),
        (b"\0\xff\xff\xff\xff{}", "resource_exhausted"),
        (b"\0\0\0\x40\0" + b"[" * 0x4000, "invalid_argument"),
    ],
)
def test_a_malformed_stream_is_refused(client: httpx.Client, body: bytes, code: str) -> None:
    response = client.post("/process.Process/Start", content=body)
    ((flags, end),) = frames(iter([response.content]))
    assert response.status_code == 200 and flags == 2
    assert end["error"]["code"] == code


def test_snake_case_null_and_unknown_fields_are_accepted(client: httpx.Client) -> None:
    request = start("true", cwd=None, unknown=1)
    assert run(client, {**request, "tag": None}).exit_code == 0
    answer = unary(client, "SendSignal", {"process": {"pid": 999999}, "signal": 9})
    assert answer.json() == {"code": "not_found", "message": "process with pid 999999 not found"}


def test_the_timeout_kills_the_command_and_its_group(client: httpx.Client) -> None:
    began = time.monotonic()
    script = "sleep 61 & echo $!; sleep 61; true"
    result = run(client, start(script), **{"Connect-Timeout-Ms": "300"})
    assert 0.25 < time.monotonic() - began < 5
    assert result.error is not None and result.error["code"] == "deadline_exceeded"
    check = start(f"sleep 0.2; kill -0 {result.stdout.decode().strip()}")
    assert run(client, check, Authorization=basic("root")).exit_code == 1


def test_the_timeout_holds_when_the_client_has_left(client: httpx.Client) -> None:
    request = {**start("sleep 61"), "tag": "abandoned"}
    with stream(client, "Start", request, **{"Connect-Timeout-Ms": "500"}) as opened:
        opened.event()
    with stream(client, "Connect", {"process": {"tag": "abandoned"}}) as opened:
        assert outcome(opened).end["status"] == "signal: killed"


def test_a_client_that_leaves_does_not_end_the_command(client: httpx.Client) -> None:
    with stream(client, "Start", start("sleep 0.4; echo still here")) as opened:
        pid = opened.event()["start"]["pid"]
    listed = unary(client, "List", {}).json()["processes"]
    assert [p["config"]["cmd"] for p in listed if p["pid"] == pid] == ["/bin/bash"]
    with stream(client, "Connect", pid_selector(pid)) as opened:
        result = outcome(opened)
    assert (result.pid, result.stdout, result.exit_code) == (pid, b"still here\n", 0)


def test_an_ended_command_can_still_be_connected_to(client: httpx.Client) -> None:
    request = {**start("exit 5"), "tag": "short"}
    pid = run(client, request).pid
    for selector in ({"pid": pid}, {"tag": "short"}):
        with stream(client, "Connect", {"process": selector}) as opened:
            assert [next(iter(e)) for e in opened.rest()] == ["start", "end"]
    assert unary(client, "CloseStdin", pid_selector(pid)).status_code == 404


def test_output_after_the_command_is_awaited_until_its_pipes_close(
    client: httpx.Client,
) -> None:
    result = run(client, start("(sleep 0.3; echo late) & exit 4"))
    assert (result.stdout, result.exit_code) == (b"late\n", 4)


def test_a_killed_command_ends_although_a_descendant_holds_its_pipes(
    client: httpx.Client,
) -> None:
    with stream(client, "Start", start("setsid sleep 3 & echo up; sleep 60; true")) as opened:
        pid = opened.event()["start"]["pid"]
        opened.event()
        began = time.monotonic()
        unary(client, "SendSignal", {**pid_selector(pid), "signal": "SIGNAL_SIGKILL"})
        assert outcome(opened).end["status"] == "signal: killed"
    assert time.monotonic() - began < 2


def test_silence_is_broken_by_keepalives(client: httpx.Client) -> None:
    headers = {"Keepalive-Ping-Interval": "1"}
    with stream(client, "Start", start("sleep 1.5"), **headers) as opened:
        assert [next(iter(e)) for e in opened.rest()] == ["start", "keepalive", "end"]


def test_all_subscribers_get_all_output(client: httpx.Client) -> None:
    with stream(client, "Start", {**start("read; seq 20000"), "stdin": True}) as first:
        pid = first.event()["start"]["pid"]
        with stream(client, "Connect", pid_selector(pid)) as second:
            second.event()
            unary(client, "SendInput", {**pid_selector(pid), "input": stdin(b"\n")})
            expected = "".join(f"{i}\n" for i in range(1, 20001)).encode()
            assert outcome(first).stdout == outcome(second).stdout == expected


def test_a_hundred_megabytes_arrive_whole(client: httpx.Client) -> None:
    size = 100_000_000
    began = time.monotonic()
    result = run(client, start(f"head -c {size} /dev/zero"))
    assert len(result.stdout) == size
    assert time.monotonic() - began < 10, "less than 10 MB/s"


def private_kib(daemon: Daemon) -> int:
    text = Path(f"/proc/{daemon.pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if "Private_Dirty" in line)


def test_a_slow_reader_holds_the_command_and_not_the_memory(
    client: httpx.Client, daemon: Daemon
) -> None:
    before = private_kib(daemon)
    script = "head -c 50000000 /dev/zero; touch /tmp/written-all"
    with stream(client, "Start", start(script)) as opened:
        opened.event()
        time.sleep(1)
        assert not (daemon.root / "tmp/written-all").exists()
        assert private_kib(daemon) - before < 4096
        assert unary(client, "List", {}).status_code == 200, "others are served meanwhile"
        assert len(outcome(opened).stdout) == 50_000_000
    assert (daemon.root / "tmp/written-all").exists()


def test_output_without_a_reader_is_dropped_and_does_not_block(
    client: httpx.Client, daemon: Daemon
) -> None:
    script = "sleep 0.3; head -c 20000000 /dev/zero; touch /tmp/nobody-reads"
    with stream(client, "Start", start(script)) as opened:
        pid = opened.event()["start"]["pid"]
    with stream(client, "Connect", pid_selector(pid)) as opened:
        pass
    deadline = time.monotonic() + 10
    while not (daemon.root / "tmp/nobody-reads").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_orphans_are_reaped(client: httpx.Client, daemon: Daemon) -> None:
    run(client, start("for i in 1 2 3; do setsid sleep 0.1 >/dev/null 2>&1 & done"))
    time.sleep(0.4)
    states = run(client, start("ps -eo stat=,ppid="), Authorization=basic("root")).stdout
    assert not [line for line in states.decode().splitlines() if line.startswith("Z")]


def test_only_the_two_signals_of_the_contract_are_sent(client: httpx.Client) -> None:
    with stream(client, "Start", start("sleep 60")) as opened:
        pid = opened.event()["start"]["pid"]
        for signal, status in (("SIGNAL_UNSPECIFIED", 501), (2, 501), ("SIGHUP", 400)):
            answer = unary(client, "SendSignal", {**pid_selector(pid), "signal": signal})
            assert answer.status_code == status
        unary(client, "SendSignal", {**pid_selector(pid), "signal": "SIGNAL_SIGTERM"})
        assert outcome(opened).end["status"] == "signal: terminated"


def test_root_in_the_sandbox_can_neither_end_nor_read_the_daemon(client: httpx.Client) -> None:
    script = (
        "for s in TERM INT HUP USR1 KILL QUIT; do kill -$s 1; done; "
        "cat /proc/1/environ; head -c1 /proc/1/mem; cat /proc/1/maps; echo done"
    )
    result = run(client, start(script), Authorization=basic("root"))
    assert result.stdout == b"done\n"
    assert client.get("/health").status_code == 204


def test_many_commands_run_at_once(client: httpx.Client, daemon: Daemon) -> None:
    requests = [start(f"sleep 0.2; echo {number}") for number in range(40)]
    with httpx.Client(
        base_url=daemon.url, headers=client.headers, timeout=20, trust_env=False
    ) as many:
        streams = [
            (many.build_request("POST", "/process.Process/Start", content=frame(request)))
            for request in requests
        ]
        responses = [many.send(request, stream=True) for request in streams]
        for number, response in enumerate(responses):
            messages = [message for _, message in frames(response.iter_raw())]
            texts = [m["event"]["data"]["stdout"] for m in messages if "data" in m.get("event", {})]
            assert b64decode("".join(texts)) == f"{number}\n".encode()
            response.close()


def test_a_large_message_is_refused_without_being_kept(client: httpx.Client) -> None:
    body = json.dumps({"process": {"pid": 1}, "input": stdin(b"a" * (33 << 20))})
    answer = client.post("/process.Process/SendInput", content=body)
    assert answer.status_code == 429 and "send less at once" in answer.json()["message"]
