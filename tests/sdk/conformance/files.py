"""Files and directories."""

from __future__ import annotations

import io
from typing import Any

from sdk.conformance.base import (
    Run,
    check,
    collected,
    done,
    kind,
    member,
    raised,
    until,
)


@check("files.write")
async def _(run: Run) -> None:
    async with run.folder() as folder:
        for data, text in (("text é", "text é"), (b"bytes", "bytes"), (io.BytesIO(b"io"), "io")):
            written = await done(run.sandbox.files.write(f"{folder}/new/a", data))
            assert written.path == f"{folder}/new/a"
            assert await done(run.sandbox.files.read(f"{folder}/new/a")) == text


@check("files.write(gzip)")
async def _(run: Run) -> None:
    write = member(run.sandbox.files, "write", "gzip")
    async with run.folder() as folder:
        await done(write(f"{folder}/a", "x" * 100_000, gzip=True))
        assert await done(run.sandbox.files.read(f"{folder}/a", gzip=True)) == "x" * 100_000


@check("files.write(metadata)")
async def _(run: Run) -> None:
    write = member(run.sandbox.files, "write", "metadata")
    async with run.folder() as folder:
        await done(write(f"{folder}/a", "a", metadata={"origin": "here"}))
        assert (await done(run.sandbox.files.get_info(f"{folder}/a"))).metadata == {
            "origin": "here"
        }


@check("files.write_files")
async def _(run: Run) -> None:
    write_files = member(run.sandbox.files, "write_files")
    async with run.folder() as folder:
        files = [{"path": f"{folder}/{name}", "data": name} for name in "abc"]
        assert [item.path for item in await done(write_files(files))] == [
            f"{folder}/{name}" for name in "abc"
        ]
        assert (await run.sh(f"cat {folder}/*")).stdout == "abc"


@check("files.read")
async def _(run: Run) -> None:
    data = bytes(range(256)) * 4000
    async with run.folder() as folder:
        await done(run.sandbox.files.write(f"{folder}/a", data))
        assert await done(run.sandbox.files.read(f"{folder}/a", format="bytes")) == data
        stream = await done(run.sandbox.files.read(f"{folder}/a", format="stream"))
        assert b"".join(await collected(stream)) == data
        await done(run.sandbox.files.write(f"{folder}/empty", ""))
        assert await done(run.sandbox.files.read(f"{folder}/empty")) == ""
    missing = kind("FileNotFoundException", "NotFoundException")
    await raised(missing, lambda: run.sandbox.files.read("/no/such/file"))


@check("files.list")
async def _(run: Run) -> None:
    async with run.folder() as folder:
        await run.sh(f"mkdir -p {folder}/d/e && touch {folder}/d/f")
        found = await done(run.sandbox.files.list(folder, depth=2))
        assert [item.path for item in found] == [f"{folder}/d", f"{folder}/d/e", f"{folder}/d/f"]


@check("files.exists")
async def _(run: Run) -> None:
    assert await done(run.sandbox.files.exists("/etc/hostname")) is True
    assert await done(run.sandbox.files.exists("/etc/nothing")) is False


@check("files.get_info")
async def _(run: Run) -> None:
    get_info = member(run.sandbox.files, "get_info")
    async with run.folder() as folder:
        await run.sh(f"echo 1234 > {folder}/a; chmod 640 {folder}/a; ln -s a {folder}/b")
        info = await done(get_info(f"{folder}/a"))
        assert (info.size, info.mode, info.owner, info.permissions) == (
            *(5, 0o640, "user"), "-rw-r-----"
        )  # fmt: skip
        assert (await done(get_info(f"{folder}/b"))).symlink_target == f"{folder}/a"


@check("files.make_dir")
async def _(run: Run) -> None:
    async with run.folder() as folder:
        assert await done(run.sandbox.files.make_dir(f"{folder}/a/b/c")) is True
        assert await done(run.sandbox.files.make_dir(f"{folder}/a/b/c")) is False


@check("files.rename")
async def _(run: Run) -> None:
    async with run.folder() as folder:
        await done(run.sandbox.files.write(f"{folder}/a", "a"))
        moved = await done(run.sandbox.files.rename(f"{folder}/a", f"{folder}/b"))
        assert (moved.name, moved.path) == ("b", f"{folder}/b")
        assert await done(run.sandbox.files.exists(f"{folder}/a")) is False


@check("files.remove")
async def _(run: Run) -> None:
    async with run.folder() as folder:
        await done(run.sandbox.files.write(f"{folder}/a/b", "a"))
        await done(run.sandbox.files.remove(f"{folder}/a"))
        assert await done(run.sandbox.files.exists(f"{folder}/a")) is False


@check("files.watch_dir")
async def _(run: Run) -> None:
    async with run.folder() as folder:
        seen: list[Any] = []
        await done(run.sandbox.files.make_dir(f"{folder}/below"))
        options = {"on_event": seen.append} if run.is_async else {}
        handle = await done(run.sandbox.files.watch_dir(folder, recursive=True, **options))
        await done(run.sandbox.files.write(f"{folder}/below/a", "a"))

        def events() -> bool:
            if not run.is_async:
                seen.extend(handle.get_new_events())
            return len(seen) >= 3

        await until(events)
        assert [event.name for event in seen] == ["below/a"] * 3
        assert [event.type.value for event in seen] == ["create", "chmod", "write"]
        await done(handle.stop())


@check("files.watch_dir(include_entry)")
async def _(run: Run) -> None:
    watch_dir = member(run.sandbox.files, "watch_dir", "include_entry")
    async with run.folder() as folder:
        seen: list[Any] = []
        options = {"on_event": seen.append} if run.is_async else {}
        handle = await done(watch_dir(folder, include_entry=True, **options))
        await done(run.sandbox.files.write(f"{folder}/a", "abc"))

        def events() -> bool:
            if not run.is_async:
                seen.extend(handle.get_new_events())
            return len(seen) >= 3

        await until(events)
        assert seen[-1].entry.path == f"{folder}/a" and seen[-1].entry.size == 3
        await done(handle.stop())
