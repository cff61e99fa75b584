"""The official SDK, unmodified, against the daemon."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Awaitable, Iterator
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from e2b import AsyncSandbox, CommandExitException, FileType, PtySize, Sandbox
from e2b.exceptions import (
    AuthenticationException,
    FileNotFoundException,
    InvalidArgumentException,
    NotEnoughSpaceException,
    TimeoutException,
)
from e2b.sandbox.filesystem.watch_handle import FilesystemEvent, FilesystemEventType

from envd.control_plane import control_plane
from envd.harness import Daemon

KEY = "e2b_" + "0" * 40


@pytest.fixture(scope="module")
def control() -> Iterator[str]:
    with control_plane() as url:
        yield url


@pytest.fixture
def sandbox(daemon: Daemon, control: str) -> Sandbox:
    return Sandbox.create(api_key=KEY, api_url=control, sandbox_url=daemon.url)


def test_a_command_returns_its_output_and_streams_it(sandbox: Sandbox) -> None:
    seen: list[str] = []
    result = sandbox.commands.run(
        "echo $FROM_CREATE $X; pwd; echo e >&2",
        envs={"X": "x"},
        cwd="/tmp",
        on_stdout=seen.append,
        on_stderr=seen.append,
    )
    assert (result.stdout, result.stderr, result.exit_code) == ("yes x\n/tmp\n", "e\n", 0)
    assert "".join(sorted(seen)).replace("\n", "") in ("/tmpeyes x", "eyes x/tmp")
    assert sandbox.is_running()


def test_a_failing_command_raises(sandbox: Sandbox) -> None:
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("echo no >&2; exit 3")
    assert (caught.value.exit_code, caught.value.stderr) == (3, "no\n")


def test_commands_run_as_the_chosen_user(sandbox: Sandbox) -> None:
    users = [sandbox.commands.run("whoami", user=user).stdout for user in ("user", "root", "other")]
    assert users == ["user\n", "root\n", "other\n"]
    with pytest.raises(AuthenticationException, match="no-one"):
        sandbox.commands.run("whoami", user="no-one")
    with pytest.raises(InvalidArgumentException, match="does not exist"):
        sandbox.commands.run("true", cwd="/nope")


def test_a_background_command_takes_input_and_is_found_and_killed(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.send_stdin(handle.pid, "hello\n")
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "hello\n"

    handle = sandbox.commands.run("sleep 100", background=True)
    assert handle.pid in [process.pid for process in sandbox.commands.list()]
    assert sandbox.commands.kill(handle.pid) and not sandbox.commands.kill(999_999)
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert caught.value.exit_code == -1


def test_a_command_can_be_left_and_followed_again(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("sleep 0.3; echo later", background=True)
    handle.disconnect()
    assert sandbox.commands.connect(handle.pid).wait().stdout == "later\n"
    assert sandbox.commands.connect(handle.pid).wait().exit_code == 0


def test_a_command_that_takes_too_long_is_a_timeout(sandbox: Sandbox) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 30", timeout=1)
    assert time.monotonic() - began < 5


def test_a_terminal_is_created_used_resized_and_killed(sandbox: Sandbox) -> None:
    seen = bytearray()
    ready = threading.Event()

    def on_data(data: bytes) -> None:
        seen.extend(data)
        if b"END\r\n" in seen:
            ready.set()

    handle = sandbox.pty.create(PtySize(rows=24, cols=80))

    def wait() -> None:
        with pytest.raises(CommandExitException):
            handle.wait(on_pty=on_data)

    reader = threading.Thread(target=wait)
    reader.start()
    sandbox.pty.resize(handle.pid, PtySize(rows=30, cols=99))
    sandbox.pty.send_stdin(handle.pid, b"tput cols; stty size; echo $TERM; echo E''ND\n")
    assert ready.wait(10)
    assert b"30 99" in seen and b"xterm-256color" in seen
    assert sandbox.pty.kill(handle.pid)
    reader.join(10)
    assert not reader.is_alive()


def test_files_are_written_and_read_in_every_form(sandbox: Sandbox) -> None:
    files = sandbox.files
    info = files.write("sdk/text.txt", "text ü")
    assert info.path == "/home/user/sdk/text.txt"
    assert files.read("sdk/text.txt") == "text ü"
    files.write("sdk/bytes", bytes(range(256)))
    assert files.read("sdk/bytes", format="bytes") == bytes(range(256))
    files.write("sdk/stream", io.BytesIO(b"s" * 3_000_000))
    assert sum(len(c) for c in files.read("sdk/stream", format="stream")) == 3_000_000
    files.write("sdk/zipped", "z" * 100_000, gzip=True)
    assert files.read("sdk/zipped", gzip=True) == "z" * 100_000
    files.write("sdk/empty", "")
    assert files.read("sdk/empty") == ""
    written = files.write_files(
        [{"path": "sdk/one", "data": "1"}, {"path": "/tmp/sdk two", "data": b"2"}]
    )
    assert [entry.path for entry in written] == ["/home/user/sdk/one", "/tmp/sdk two"]
    tagged = files.write("sdk/tagged", "t", metadata={"Author": "me"})
    assert tagged.metadata == {"author": "me"}
    assert files.get_info("sdk/tagged").metadata == {"author": "me"}


def test_the_tree_is_listed_made_moved_and_removed(sandbox: Sandbox) -> None:
    files = sandbox.files
    assert files.make_dir("tree/a/b") and not files.make_dir("tree/a/b")
    files.write("tree/a/f.txt", "content")
    assert [e.path for e in files.list("tree", depth=2)] == [
        "/home/user/tree/a", "/home/user/tree/a/b", "/home/user/tree/a/f.txt"
    ]  # fmt: skip
    info = files.rename("tree/a/f.txt", "tree/moved/g.txt")
    assert (info.path, info.type, info.size) == ("/home/user/tree/moved/g.txt", FileType.FILE, 7)
    assert (info.mode, info.permissions, info.owner) == (0o644, "-rw-r--r--", "user")
    assert files.exists("tree/moved") and not files.exists("tree/a/f.txt")
    files.remove("tree")
    assert not files.exists("tree")
    for path in ("tree", "/nope/x"):
        with pytest.raises(FileNotFoundException):
            files.read(path)
    with pytest.raises(InvalidArgumentException):
        files.read("/tmp")
    with pytest.raises(NotEnoughSpaceException):
        files.write("/small/much", bytes(2 << 20))


def test_a_directory_is_watched_by_polling(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("polled")
    handle = sandbox.files.watch_dir("polled", recursive=True, include_entry=True)
    sandbox.files.write("polled/x", "x")
    time.sleep(0.1)
    events = handle.get_new_events()
    kinds = FilesystemEventType
    assert [(e.name, e.type) for e in events] == [
        ("x", kinds.CREATE), ("x", kinds.CHMOD), ("x", kinds.WRITE)
    ]  # fmt: skip
    assert events[0].entry is not None and events[0].entry.path == "/home/user/polled/x"
    handle.stop()


def test_signed_urls_work_and_expire(sandbox: Sandbox, daemon: Daemon) -> None:
    sandbox.files.write("signed file", "signed")

    def fetch(url: str) -> bytes:
        parts = urlsplit(url)
        with urlopen(f"{daemon.url}{parts.path}?{parts.query}", timeout=10) as response:
            return bytes(response.read())

    url = sandbox.download_url("signed file", use_signature_expiration=60)
    assert fetch(url) == b"signed"
    with pytest.raises(OSError, match="401"):
        fetch(url.replace("signed", "other"))


async def test_everything_works_asynchronously_and_at_once(daemon: Daemon, control: str) -> None:
    sandbox = await AsyncSandbox.create(api_key=KEY, api_url=control, sandbox_url=daemon.url)
    results = await asyncio.gather(*(sandbox.commands.run(f"echo {i}") for i in range(20)))
    assert [result.stdout for result in results] == [f"{i}\n" for i in range(20)]

    events: asyncio.Queue[FilesystemEvent] = asyncio.Queue()
    await sandbox.files.make_dir("streamed")
    watch = await sandbox.files.watch_dir("streamed", on_event=events.put_nowait)
    await sandbox.files.write("streamed/y", "y")
    async with asyncio.timeout(5):
        kinds = [(await events.get()).type.name for _ in range(3)]
    assert kinds == ["CREATE", "CHMOD", "WRITE"]
    stopped: Awaitable[None] = watch.stop()  # type: ignore[no-untyped-call]  # as the SDK has it
    await stopped

    handle = await sandbox.commands.run("cat", background=True, stdin=True)
    await sandbox.commands.send_stdin(handle.pid, "async")
    await sandbox.commands.close_stdin(handle.pid)
    assert (await handle.wait()).stdout == "async"

    seen: list[bytes] = []
    pty = await sandbox.pty.create(PtySize(rows=5, cols=20), on_data=seen.append)
    await sandbox.pty.send_stdin(pty.pid, b"exit 4\n")
    with pytest.raises(CommandExitException) as caught:
        await pty.wait()
    assert caught.value.exit_code == 4 and seen
