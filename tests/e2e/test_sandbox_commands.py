"""Commands, terminals and files through the SDK."""

from __future__ import annotations

import time

import pytest
from e2b import (
    CommandExitException,
    FileNotFoundException,
    FileType,
    InvalidArgumentException,
    PtySize,
    SandboxException,
    TimeoutException,
)

from e2e.box import Box, until


def test_output_and_exit_code(shared_box: Box) -> None:
    done = shared_box.sandbox.commands.run("echo out; echo err >&2")
    assert (done.stdout, done.stderr, done.exit_code) == ("out\n", "err\n", 0)
    with pytest.raises(CommandExitException) as failed:
        shared_box.sandbox.commands.run("echo some; exit 7")
    assert (failed.value.exit_code, failed.value.stdout) == (7, "some\n")


def test_environment_directory_and_user(shared_box: Box) -> None:
    run = shared_box.sandbox.commands.run
    assert run("echo $A-$B", envs={"A": "1", "B": "x y"}).stdout == "1-x y\n"
    assert run("pwd", cwd="/usr/lib").stdout == "/usr/lib\n"
    assert run("whoami; pwd; echo $HOME", user="root").stdout == "root\n/root\n/root\n"
    with pytest.raises(InvalidArgumentException, match="does not exist"):
        run("pwd", cwd="/no/such")


def test_output_streams_as_it_is_made(shared_box: Box) -> None:
    arrived: list[tuple[float, str]] = []
    started = time.monotonic()
    shared_box.sandbox.commands.run(
        "echo first; sleep 0.5; echo second",
        on_stdout=lambda text: arrived.append((time.monotonic() - started, text)),
    )
    assert [text for _, text in arrived] == ["first\n", "second\n"]
    assert arrived[1][0] - arrived[0][0] > 0.3


def test_a_command_in_the_background_goes_on_is_listed_and_killed(shared_box: Box) -> None:
    commands = shared_box.sandbox.commands
    handle = commands.run("sleep 1234", background=True)
    assert handle.pid in [process.pid for process in commands.list()]
    handle.disconnect()
    assert shared_box.sh("pgrep -f 'sleep 1234'").exit_code == 0
    assert commands.kill(handle.pid) is True
    assert commands.kill(handle.pid) is False
    until(lambda: handle.pid not in [process.pid for process in commands.list()])


def test_connecting_to_a_running_command(shared_box: Box) -> None:
    commands = shared_box.sandbox.commands
    handle = commands.run("read line; echo got $line", background=True, stdin=True)
    pid = handle.pid
    handle.disconnect()
    again = commands.connect(pid)
    commands.send_stdin(pid, "hello\n")
    assert again.wait().stdout == "got hello\n"


def test_stdin_and_its_end(shared_box: Box) -> None:
    commands = shared_box.sandbox.commands
    handle = commands.run("cat; echo end", background=True, stdin=True)
    commands.send_stdin(handle.pid, "one\n")
    commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "one\nend\n"


def test_a_command_ends_at_its_timeout(shared_box: Box) -> None:
    with pytest.raises(TimeoutException):
        shared_box.sandbox.commands.run("sleep 777", timeout=1)
    until(lambda: shared_box.sh("pgrep -x -f 'sleep 777'").exit_code != 0)


def test_large_output_is_whole(shared_box: Box) -> None:
    done = shared_box.sandbox.commands.run("seq 1 300000")
    assert done.stdout == "".join(f"{n}\n" for n in range(1, 300001))


def test_many_commands_at_once(shared_box: Box) -> None:
    handles = [
        shared_box.sandbox.commands.run(f"sleep 0.2; echo {n}", background=True) for n in range(20)
    ]
    assert [handle.wait().stdout for handle in handles] == [f"{n}\n" for n in range(20)]


def test_a_terminal(shared_box: Box) -> None:
    shown: list[bytes] = []
    pty = shared_box.sandbox.pty
    terminal = pty.create(PtySize(rows=30, cols=90), envs={"MARK": "m1"})
    pty.resize(terminal.pid, PtySize(rows=31, cols=91))
    pty.send_stdin(terminal.pid, b"tty; stty size; echo $MARK $TERM; exit 3\n")
    with pytest.raises(CommandExitException) as ended:
        terminal.wait(on_pty=shown.append)
    text = b"".join(shown).decode()
    assert ended.value.exit_code == 3
    assert "/dev/pts/" in text and "31 91" in text and "m1 xterm-256color" in text


def test_files_are_written_read_listed_and_removed(shared_box: Box) -> None:
    files = shared_box.sandbox.files
    written = files.write("work/deep/note.txt", "héllo")
    assert written.path == "/home/user/work/deep/note.txt"
    assert files.read("work/deep/note.txt") == "héllo"
    assert shared_box.sh("stat -c '%U %a' work/deep/note.txt").stdout == "user 644\n"
    assert files.exists("work/deep") and not files.exists("work/none")
    assert files.make_dir("work/empty") is True and files.make_dir("work/empty") is False
    listed = {entry.name: entry.type for entry in files.list("work")}
    assert listed == {"deep": FileType.DIR, "empty": FileType.DIR}
    moved = files.rename("work/deep/note.txt", "work/moved.txt")
    assert moved.path == "/home/user/work/moved.txt" and not files.exists("work/deep/note.txt")
    files.remove("work")
    assert not files.exists("work")
    with pytest.raises(FileNotFoundException):
        files.read("work/moved.txt")


def test_large_and_binary_files(shared_box: Box) -> None:
    data = bytes(range(256)) * 40_000
    shared_box.sandbox.files.write("/tmp/binary", data)
    assert bytes(shared_box.sandbox.files.read("/tmp/binary", format="bytes")) == data
    assert shared_box.sandbox.files.write("/tmp/nothing", "").path == "/tmp/nothing"
    assert shared_box.sandbox.files.read("/tmp/nothing") == ""


def test_files_of_root_and_of_nobody(shared_box: Box) -> None:
    files = shared_box.sandbox.files
    files.write("/root/secret", "x", user="root")
    assert shared_box.sh("cat /root/secret").exit_code != 0
    assert files.read("/root/secret", user="root") == "x"
    with pytest.raises((SandboxException, Exception), match="nosuchuser"):
        files.write("/tmp/x", "x", user="nosuchuser")


def test_global_environment_of_a_sandbox(make_box: object, sandboxes: object) -> None:
    from e2b import Sandbox

    with Sandbox.create(envs={"GREETING": "hi there"}) as sandbox:
        assert sandbox.commands.run("echo $GREETING").stdout == "hi there\n"
