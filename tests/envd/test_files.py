"""`/files`, access control and the other plain HTTP endpoints."""

from __future__ import annotations

import gzip
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from envd.contents import OCTETS, get, message, put
from envd.harness import Daemon, Json, unary
from sandgate.envd import uploads


@pytest.mark.parametrize("size", [0, 1, 65_536, 300_001, 5_000_000])
def test_a_file_is_read_as_it_was_written(client: httpx.Client, daemon: Daemon, size: int) -> None:
    data = os.urandom(size)
    answer = put(client, f"new-{size}/a ü.bin", data)
    path = f"/home/user/new-{size}/a ü.bin"
    assert answer.json() == [{"path": path, "name": "a ü.bin", "type": "file"}]
    info = (daemon.root / path[1:]).stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (1000, 1000, 0o644)
    assert (daemon.root / path[1:]).parent.stat().st_uid == 1000
    read = get(client, path)
    assert read.content == data and read.headers["Content-Length"] == str(size)


def test_many_files_are_written_by_one_form(client: httpx.Client, daemon: Daemon) -> None:
    files = [
        ("file", ("/tmp/form/abs.txt", b"one", "text/plain")),
        ("other", ("/tmp/form/no.txt", b"ignored", "text/plain")),
        ("file", ("form/rel.txt", b"\r\n--two" * 9000, "text/plain")),
        ("file", ("form/empty", b"", "text/plain")),
    ]
    answer = client.post("/files", params={"username": "other"}, files=files)
    assert [entry["path"] for entry in answer.json()] == [
        "/tmp/form/abs.txt",
        "/home/other/form/rel.txt",
        "/home/other/form/empty",
    ]
    assert (daemon.root / "home/other/form/rel.txt").read_bytes() == b"\r\n--two" * 9000
    assert (daemon.root / "tmp/form/abs.txt").stat().st_uid == 1001
    assert not (daemon.root / "tmp/form/no.txt").exists()


def test_two_files_of_one_path_are_refused_after_the_first(
    client: httpx.Client, daemon: Daemon
) -> None:
    files = [("file", ("twice", b"first")), ("file", ("twice", b"second"))]
    answer = client.post("/files", files=files)
    assert answer.status_code == 400 and "multiple files to the same path" in message(answer)
    assert (daemon.root / "home/user/twice").read_bytes() == b"first"


def test_compressed_uploads_and_downloads(client: httpx.Client) -> None:
    data = b"compress me " * 100_000
    members = gzip.compress(data[:500]) + gzip.compress(data[500:])
    assert put(client, "z", members, **{"Content-Encoding": "gzip"}).status_code == 200
    assert get(client, "z").content == data
    answer = get(client, "z", **{"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip" and answer.content == data
    assert "Content-Encoding" not in get(client, "z", **{"Accept-Encoding": "gzip, br"}).headers


def test_a_compressed_upload_that_expands_a_thousandfold_takes_no_memory(
    client: httpx.Client, daemon: Daemon
) -> None:
    bomb = gzip.compress(bytes(100 << 20))
    assert put(client, "bomb", bomb, **{"Content-Encoding": "gzip"}).status_code == 200
    assert (daemon.root / "home/user/bomb").stat().st_size == 100 << 20
    (daemon.root / "home/user/bomb").unlink()
    status = (daemon.root / "proc/1/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0])
    assert peak < 100_000, f"{peak} KiB at the peak"


@pytest.mark.parametrize("body", [b"", b"no gzip", gzip.compress(b"x" * 1000)[:-3]])
def test_a_broken_compressed_upload_leaves_no_file(
    client: httpx.Client, daemon: Daemon, body: bytes
) -> None:
    answer = put(client, "broken.gz", body, **{"Content-Encoding": "gzip"})
    assert answer.status_code == 400 and "decompress" in message(answer)
    assert not (daemon.root / "home/user/broken.gz").exists()


def test_a_part_of_a_file_is_read_by_range(client: httpx.Client) -> None:
    put(client, "ranged", b"0123456789")
    answer = get(client, "ranged", Range="bytes=2-4")
    assert (answer.status_code, answer.content) == (206, b"234")
    assert answer.headers["Content-Range"] == "bytes 2-4/10"
    behind = get(client, "ranged", Range="bytes=10-")
    assert behind.status_code == 416 and behind.headers["Content-Range"] == "bytes */10"
    modified = get(client, "ranged").headers["Last-Modified"]
    assert get(client, "ranged", **{"If-Modified-Since": modified}).status_code == 304
    condition = {"Range": "bytes=0-0", "If-Range": modified}
    assert get(client, "ranged", **condition).status_code == 206
    condition["If-Range"] = "Mon, 01 Jan 2001 00:00:00 GMT"
    assert get(client, "ranged", **condition).content == b"0123456789"


def test_a_file_that_is_written_anew_all_the_time_can_be_read(
    client: httpx.Client, daemon: Daemon
) -> None:
    """It is shorter than it was a moment before."""
    path, text = daemon.root / "tmp/anew", b"number " * 9
    path.write_bytes(text)
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            path.write_bytes(text)

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        try:
            for _ in range(300):
                answer = get(client, "/tmp/anew")
                assert answer.status_code == 200 and text.startswith(answer.content)
        finally:
            over.set()
        writing.result()


def test_a_large_file_that_shrinks_is_not_taken_for_whole(
    client: httpx.Client, daemon: Daemon
) -> None:
    path = daemon.root / "tmp/shrinks"
    path.write_bytes(bytes(64 << 20))
    with (
        pytest.raises(httpx.RemoteProtocolError, match="peer closed connection"),
        client.stream(
            "GET", "/files", params={"path": "/tmp/shrinks"}, headers={"Accept-Encoding": ""}
        ) as response,
    ):
        for number, _ in enumerate(response.iter_raw()):
            if number == 0:
                os.truncate(path, 1000)
    path.unlink()


def test_files_of_proc_are_read_although_they_claim_to_be_empty(client: httpx.Client) -> None:
    assert b"MemTotal" in get(client, "/proc/meminfo").content


def test_metadata_is_kept_replaced_and_cleared(client: httpx.Client) -> None:
    answer = put(client, "tagged", b"1", **{"X-Metadata-Author": "me", "X-Metadata-b": "2"})
    assert answer.json()[0]["metadata"] == {"author": "me", "b": "2"}
    entry = unary(client, "Stat", {"path": "tagged"}).json()["entry"]
    assert entry["metadata"] == {"author": "me", "b": "2"}
    assert put(client, "tagged", b"1", **{"X-Metadata-c": "3"}).json()[0]["metadata"] == {"c": "3"}
    assert "metadata" not in put(client, "tagged", b"1").json()[0]
    bad = {b"Content-Type": b"application/octet-stream", b"X-Metadata-c": b"\xff"}
    assert client.post("/files", params={"path": "x"}, content=b"", headers=bad).status_code == 400


DOWNLOAD_FAILURES = [
    ("/nope", 404, "path '/nope' does not exist"),
    ("/etc/passwd/x", 404, "does not exist"),
    ("/tmp", 400, "is a directory"),
    ("/proc/self/maps", 403, "is the daemon's own"),
    ("/proc/1/environ", 403, "is the daemon's own"),
    ("/proc/thread-self/smaps", 403, "is the daemon's own"),
    ("/dev/zero", 400, "not a regular file"),
    ("/tmp/a-pipe", 400, "not a regular file"),
    ("~other", 400, "cannot expand"),
]


@pytest.mark.parametrize(("path", "status", "text"), DOWNLOAD_FAILURES)
def test_what_is_no_file_cannot_be_read(
    client: httpx.Client, daemon: Daemon, path: str, status: int, text: str
) -> None:
    pipe = daemon.root / "tmp/a-pipe"
    if not pipe.exists():
        os.mkfifo(pipe)
    answer = get(client, path)
    assert answer.status_code == status and text in message(answer)


UPLOAD_FAILURES: list[tuple[Json, dict[str, str], int, str]] = [
    ({"path": "/tmp"}, OCTETS, 400, "is a directory"),
    ({"path": "/dev/null"}, OCTETS, 400, "not a regular file"),
    ({"path": "/tmp/another-pipe"}, OCTETS, 400, ""),
    ({"path": "/etc/passwd/x"}, OCTETS, 400, "/etc/passwd"),
    ({}, OCTETS, 400, "path query parameter is required"),
    ({"path": "x"}, {"Content-Type": "text/plain"}, 400, "unsupported content type"),
    ({"path": "x"}, {"Content-Type": "multipart/form-data"}, 400, "boundary"),
    ({"path": "x"}, {"Content-Type": "multipart/form-data; boundary=b"}, 400, "boundary"),
    ({"path": "x"}, {**OCTETS, "Content-Encoding": "br"}, 400, "unsupported Content-Encoding"),
    ({"path": "x", "username": "no-one"}, OCTETS, 401, "no-one"),
]


@pytest.mark.parametrize(("query", "headers", "status", "text"), UPLOAD_FAILURES)
def test_what_cannot_be_written_is_refused(
    client: httpx.Client,
    daemon: Daemon,
    query: Json,
    headers: dict[str, str],
    status: int,
    text: str,
) -> None:
    pipe = daemon.root / "tmp/another-pipe"
    if not pipe.exists():
        os.mkfifo(pipe)
    answer = client.post("/files", params=query, content=b"data", headers=headers)
    assert answer.status_code == status and text in message(answer)


def test_an_existing_file_is_opened_as_one_and_a_link_to_nothing_makes_its_file(
    client: httpx.Client, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With O_CREAT, fs.protected_regular keeps root from files of others in /tmp."""
    (daemon.root / "tmp/link").symlink_to("link-target")
    for content in (b"made", b"again"):
        assert put(client, "/tmp/link", content).status_code == 200
        assert (daemon.root / "tmp/link-target").read_bytes() == content
    existing, ways, opens = tmp_path / "file", [], os.open
    existing.touch()

    def spy(path: str, flags: int, mode: int = 0o777) -> int:
        ways.append(flags)
        return opens(path, flags, mode)

    monkeypatch.setattr(os, "open", spy)
    os.close(uploads._open_existing(str(existing)))
    assert [flags & os.O_CREAT for flags in ways] == [0]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_full_disk_is_507_and_leaves_no_half_file(
    client: httpx.Client, daemon: Daemon, chunked: bool
) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(4):
            yield bytes(1 << 20)

    (daemon.root / "small/old").write_bytes(b"old content")
    for name in ("new", "old"):
        body = chunks() if chunked else bytes(4 << 20)
        query = {"path": f"/small/{name}"}
        answer = client.post("/files", params=query, content=body, headers=OCTETS)
        assert answer.status_code == 507 and "not enough disk space" in message(answer)
    assert not (daemon.root / "small/new").exists()
    # Known beforehand, it does not even touch what was there.
    expected = b"" if chunked else b"old content"
    assert (daemon.root / "small/old").read_bytes() == expected
    assert put(client, "/small/fits", bytes(100_000)).status_code == 200
    (daemon.root / "small/fits").unlink()


def test_an_upload_that_breaks_off_leaves_no_new_file(daemon: Daemon) -> None:
    def chunks() -> Iterator[bytes]:
        yield bytes(1 << 20)
        raise InterruptedError("the client's own failure")

    with daemon.client() as client, pytest.raises(InterruptedError):
        client.post("/files", params={"path": "half"}, content=chunks(), headers=OCTETS)
    deadline = time.monotonic() + 5
    while (daemon.root / "home/user/half").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_files_are_joined(client: httpx.Client, daemon: Daemon) -> None:
    for name in ("part1", "part2"):
        put(client, name, name.encode() * 100_000)
    body = {"source_paths": ["part1", "~/part2"], "destination": "joined/all"}
    answer = client.post("/files/compose", json=body)
    assert answer.json() == {"path": "/home/user/joined/all", "name": "all", "type": "file"}
    joined = daemon.root / "home/user/joined/all"
    assert joined.read_bytes() == b"part1" * 100_000 + b"part2" * 100_000
    assert joined.stat().st_uid == 1000
    assert not (daemon.root / "home/user/part1").exists()
    assert os.listdir(joined.parent) == ["all"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"source_paths": [], "destination": "x"}, 400),
        ({"source_paths": ["a"]}, 400),
        ({"source_paths": ["a"], "destination": "a"}, 400),
        ({"source_paths": ["/tmp"], "destination": "a"}, 400),
        ({"source_paths": ["nope"], "destination": "a"}, 404),
        ({"source_paths": ["nope"], "destination": "a", "username": "no-one"}, 401),
        ([], 400),
    ],
)
def test_what_cannot_be_joined_is_refused(client: httpx.Client, body: Json, status: int) -> None:
    answer = client.post("/files/compose", json=body)
    assert answer.status_code == status and message(answer)


def test_long_paths_and_unknown_parameters_are_accepted(client: httpx.Client) -> None:
    path = "/" + "ü" * 2000
    answer = client.get("/files", params={"path": path, "source": "x"})
    assert answer.status_code in (404, 500) and message(answer)


def test_a_large_file_passes_in_constant_memory(client: httpx.Client, daemon: Daemon) -> None:
    size, chunk = 384 << 20, bytes(1 << 20)

    def chunks() -> Iterator[bytes]:
        for _ in range(size // len(chunk)):
            yield chunk

    try:
        answer = client.post("/files", params={"path": "big"}, content=chunks(), headers=OCTETS)
        assert answer.status_code == 200
        with client.stream("GET", "/files", params={"path": "big"}) as response:
            assert sum(len(part) for part in response.iter_raw()) == size
    finally:
        (daemon.root / "home/user/big").unlink(missing_ok=True)
    status = (daemon.root / "proc/1/status").read_text()
    assert int(status.partition("VmHWM:")[2].split()[0]) < 100_000
