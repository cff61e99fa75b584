"""Disks that outlive their processes, and copies of them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from runtime.conftest import LauncherProcess, Start
from sandgate.runtime import images
from sandgate.runtime.client import LauncherClient, LauncherError

_FILES = """
echo changed > /etc/os-release; rm /bin/ls; rm -r /usr/share/doc; mkdir /usr/share/doc
mkdir -p /home/user/d; echo kept > /home/user/d/f; ln -s d /home/user/l
chown -R user:user /home/user/d; chmod u+s /home/user/d/f
python3 -c 'import os; os.setxattr("/home/user/d/f", "user.a", b"b")'
"""
_LOOK = """
cat /etc/os-release; test -e /bin/ls || echo gone; find /usr/share/doc
stat -c '%U %G %a' /home/user/d/f; cat /home/user/l/f
python3 -c 'import os; print(os.getxattr("/home/user/d/f", "user.a").decode())'
touch /etc/os-release /home/user/d/f /usr/share/doc/new && echo written
"""
_FOUND = "changed\ngone\n/usr/share/doc\nuser user 4644\nkept\nb\nwritten\n"


def images_of(launcher: LauncherProcess) -> list[str]:
    data = launcher.settings.data_dir
    found = [*(data / "disks").rglob("*"), *(data / "snapshots").rglob("*")]
    return sorted(str(path.relative_to(data)) for path in found if path.is_file())


async def test_a_parked_sandbox_starts_again_on_its_disk_in_another_slot(
    start: Start, client: LauncherClient, launcher: LauncherProcess
) -> None:
    sandbox = await start("ipark")
    assert sandbox.run(_FILES)[0] == 0
    await client.park("ipark")
    assert not Path(f"/proc/{sandbox.launched.pid}").exists()
    assert await client.running() == []
    assert await client.images() == ({"ipark"}, set())
    await client.park("ipark")  # again, harmlessly
    again = await start("ipark", kept=True)
    assert again.launched.slot != sandbox.launched.slot
    assert again.run(_LOOK) == (0, _FOUND)
    assert await client.images() == (set(), set())
    # And once more, from there.
    await client.pause("ipark")
    await client.park("ipark")
    third = await start("ipark", kept=True)
    assert third.run("cat /home/user/d/f; rm /home/user/d/f") == (0, "kept\n")
    await client.kill("ipark")
    await asyncio.sleep(0.5)
    assert "disks/ipark.img" not in images_of(launcher)


async def test_everything_written_is_there_however_much_it_was(
    start: Start, client: LauncherClient
) -> None:
    sandbox = await start("imuch")
    write = "head -c 100M /dev/urandom > /home/user/big; sha256sum < /home/user/big"
    code, digest = sandbox.run(write)
    assert code == 0
    await client.park("imuch")
    again = await start("imuch", kept=True)
    assert again.run("sha256sum < /home/user/big") == (0, digest)


async def test_a_snapshot_is_what_the_disk_was_and_the_sandbox_goes_on(
    start: Start, client: LauncherClient
) -> None:
    sandbox = await start("isource")
    sandbox.run(_FILES)
    sandbox.run("sleep 1000 > /dev/null 2>&1 &")
    await client.snapshot("isource", "s1")
    assert sandbox.run("pgrep -c sleep; echo later > /home/user/later")[0] == 0
    await client.clone("s1", "icopy")
    copy = await start("icopy", kept=True)
    assert copy.run(_LOOK) == (0, _FOUND)
    assert copy.run("ls /home/user/later || pgrep -c sleep")[1].endswith("0\n")
    copy.run("echo theirs > /home/user/d/f")
    assert sandbox.run("cat /home/user/d/f") == (0, "kept\n")
    assert (await client.images())[1] == {"s1"}
    await client.drop_snapshot("s1")
    await client.drop_snapshot("s1")
    assert await client.images() == (set(), set())


@pytest.mark.parametrize("how", ["paused", "parked", "adopted"])
async def test_a_snapshot_can_be_taken_whatever_the_sandbox_does(
    start: Start, client: LauncherClient, launcher: LauncherProcess, how: str
) -> None:
    sandbox = await start("iwhatever")
    sandbox.run("echo here > /home/user/f")
    if how == "paused":
        await client.pause("iwhatever")
    elif how == "parked":
        await client.park("iwhatever")
    else:
        launcher.stop(signal.SIGKILL)
        launcher.start()
    await client.snapshot("iwhatever", "s1")
    assert [item.paused for item in await client.running()] == {
        "paused": [True],
        "parked": [],
        "adopted": [False],
    }[how]
    await client.clone("s1", "icopy")
    assert (await start("icopy", kept=True)).run("cat /home/user/f") == (0, "here\n")
    for name in ("iwhatever", "icopy"):
        await client.kill(name)
    await client.drop_snapshot("s1")


async def test_what_is_kept_survives_the_launcher(
    start: Start, client: LauncherClient, launcher: LauncherProcess
) -> None:
    for name in ("istays", "igoes"):
        (await start(name)).run("echo here > /home/user/f")
    await client.park("istays")
    await client.snapshot("igoes", "s1")
    launcher.stop()
    assert images_of(launcher) == ["disks/istays.img", "snapshots/s1.img"]
    launcher.start()
    assert await client.images() == ({"istays"}, {"s1"})
    assert (await start("istays", kept=True)).run("cat /home/user/f") == (0, "here\n")
    await client.kill("istays")
    await client.drop_snapshot("s1")


async def test_an_adopted_sandbox_can_be_parked(
    start: Start, client: LauncherClient, launcher: LauncherProcess
) -> None:
    sandbox = await start("iadopted")
    sandbox.run("echo here > /home/user/f")
    launcher.stop(signal.SIGKILL)
    launcher.start()
    await client.park("iadopted")
    assert (await start("iadopted", kept=True)).run("cat /home/user/f") == (0, "here\n")


async def test_a_killed_launcher_leaves_no_images_behind(
    start: Start, client: LauncherClient, launcher: LauncherProcess
) -> None:
    sandbox = await start("ionly")
    (launcher.settings.data_dir / "snapshots" / "half.part").write_bytes(b"x")
    launcher.stop(signal.SIGKILL)
    os.kill(sandbox.launched.pid, signal.SIGKILL)
    launcher.start()
    assert await client.running() == []
    launcher.stop()
    assert images_of(launcher) == []


async def test_killing_ends_a_park_under_way(start: Start, client: LauncherClient) -> None:
    sandbox = await start("iboth")
    sandbox.run("head -c 50M /dev/urandom > /home/user/big")
    park = asyncio.create_task(client.park("iboth"))
    await asyncio.sleep(0)
    await client.kill("iboth")
    await asyncio.gather(park, return_exceptions=True)
    assert await client.images() == (set(), set())
    assert await client.running() == []


async def test_what_does_not_exist_is_told(start: Start, client: LauncherClient) -> None:
    await start("iis")
    for attempt, why in (
        (client.park("inot"), "inot does not run"),
        (client.snapshot("inot", "s1"), "inot does not run"),
        (client.clone("snot", "inew"), "No such file"),
        (start("inot", kept=True), "No such file"),
    ):
        with pytest.raises(LauncherError, match=why):
            await attempt
    assert await client.images() == (set(), set())


async def test_the_launcher_is_not_held_up_by_a_copy(start: Start, client: LauncherClient) -> None:
    sandbox = await start("islow")
    sandbox.run("head -c 150M /dev/urandom > /home/user/big")
    copying = asyncio.create_task(client.snapshot("islow", "s1"))
    slowest = 0.0
    while not copying.done():
        begun = time.perf_counter()
        await client.running()
        slowest = max(slowest, time.perf_counter() - begun)
    await copying
    assert slowest < 0.1
    await client.drop_snapshot("s1")


def test_a_copy_is_the_same_and_as_sparse(tmp_path: Path) -> None:
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    with source.open("wb") as file:
        file.truncate(1 << 30)
        for offset in (0, 5 << 20, (1 << 30) - 4096):
            file.seek(offset)
            file.write(os.urandom(4096))
    images.copy(source, target)
    assert target.stat().st_size == 1 << 30
    assert target.stat().st_blocks <= source.stat().st_blocks + 64
    with source.open("rb") as one, target.open("rb") as other:
        for offset in (0, 4096, 5 << 20, (1 << 30) - 4096):
            one.seek(offset)
            other.seek(offset)
            assert one.read(4096) == other.read(4096)
    with pytest.raises(FileNotFoundError):
        images.copy(tmp_path / "nosuch.img", tmp_path / "x.img")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.img", "target.img"]
