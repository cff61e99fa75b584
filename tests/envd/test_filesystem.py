"""`filesystem.Filesystem` over plain HTTP."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from envd.harness import Daemon, Json, basic, run, start, stream, unary


@pytest.fixture
def home(daemon: Daemon, request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own, as the test sees it; the daemon sees `/home/user/<name>`."""
    path: Path = daemon.root / "home/user" / request.node.name.partition("[")[0]
    path.mkdir(exist_ok=True)
    os.chown(path, 1000, 1000)
    return path


def inside(path: Path) -> str:
    return f"/home/user/{path.name}"


def code(response: httpx.Response) -> str:
    return str(response.json().get("code"))


def test_stat_tells_all_about_a_file(client: httpx.Client, home: Path) -> None:
    (home / "a.txt").write_text("hello")
    os.chown(home / "a.txt", 1001, 29)
    os.chmod(home / "a.txt", 0o4640)
    os.utime(home / "a.txt", ns=(0, 1_700_000_000_123_456_789))
    entry = unary(client, "Stat", {"path": f"{home.name}/a.txt"}).json()["entry"]
    assert entry == {
        "name": "a.txt",
        "type": "FILE_TYPE_FILE",
        "path": f"{inside(home)}/a.txt",
        "size": "5",
        "mode": 0o640,
        "permissions": "urw-r-----",
        "owner": "other",
        "group": "audio",
        "modifiedTime": "2023-11-14T22:13:20.123456789Z",
    }


def test_a_link_has_the_type_of_what_it_leads_to(client: httpx.Client, home: Path) -> None:
    (home / "dir").mkdir(mode=0o750)
    (home / "link").symlink_to("dir")
    (home / "broken").symlink_to("nowhere")
    link = unary(client, "Stat", {"path": f"{inside(home)}/link"}).json()["entry"]
    assert (link["type"], link["mode"]) == ("FILE_TYPE_DIRECTORY", 0o750)
    assert link["permissions"] == "Lrwxrwxrwx" and link["symlinkTarget"] == f"{inside(home)}/dir"
    broken = unary(client, "Stat", {"path": f"{inside(home)}/broken"}).json()["entry"]
    assert (broken["type"], broken["mode"]) == ("FILE_TYPE_UNSPECIFIED", 0)


def listed(client: httpx.Client, path: str, depth: int = 0) -> list[str]:
    answer = unary(client, "ListDir", {"path": path, "depth": depth})
    assert answer.status_code == 200, answer.text
    return [entry["path"].removeprefix(path) for entry in answer.json()["entries"]]


def test_a_listing_goes_down_in_order_and_follows_only_its_root(
    client: httpx.Client, home: Path
) -> None:
    for name in ("b/c/d", "a", "b-x"):
        (home / name).mkdir(parents=True)
    (home / "b/file").touch()
    (home / "loop").symlink_to(".")
    (home.parent / "to-listing").symlink_to(home.name)
    path = inside(home)
    assert listed(client, path) == ["/a", "/b", "/b-x", "/loop"]
    assert listed(client, path, 2) == ["/a", "/b", "/b/c", "/b/file", "/b-x", "/loop"]
    assert "/b/c/d" in listed(client, path, 4_000_000_000)
    assert listed(client, "/home/user/to-listing") == ["/a", "/b", "/b-x", "/loop"]


def test_names_that_are_no_text_can_be_listed(client: httpx.Client, home: Path) -> None:
    Path(os.fsdecode(os.fsencode(home) + b"/\xff\n")).touch()
    assert listed(client, inside(home)) == ["/\ufffd\n"]


def test_directories_are_made_with_those_above(client: httpx.Client, home: Path) -> None:
    answer = unary(
        client, "MakeDir", {"path": f"{inside(home)}/x/y/"}, Authorization=basic("other")
    )
    assert answer.json()["entry"]["owner"] == "other" and answer.json()["entry"]["name"] == "y"
    assert (home / "x").stat().st_uid == 1001 and (home / "x").stat().st_mode & 0o777 == 0o755


def test_moving_makes_the_directory_and_replaces(client: httpx.Client, home: Path) -> None:
    (home / "a").write_text("a")
    (home / "n").mkdir()
    (home / "n/b").write_text("b")
    path = inside(home)
    for destination in ("n/b", "new/dir/c"):
        message = {"source": f"{path}/a", "destination": f"{path}/{destination}"}
        entry = unary(client, "Move", message).json()["entry"]
        assert entry["path"] == f"{path}/{destination}" and not (home / "a").exists()
        assert (home / destination).read_text() == "a"
        (home / destination).rename(home / "a")


def test_removing_is_recursive_and_follows_no_link(client: httpx.Client, home: Path) -> None:
    (home / "keep").touch()
    (home / "tree/sub").mkdir(parents=True)
    (home / "tree/sub/out").symlink_to("../..")
    for _ in range(2):
        assert unary(client, "Remove", {"path": f"{inside(home)}/tree"}).json() == {}
    assert unary(client, "Remove", {"path": f"{inside(home)}/none/at/all"}).json() == {}
    assert os.listdir(home) == ["keep"]


FAILURES: list[tuple[str, Json, str]] = [
    ("Stat", {"path": "/nope"}, "not_found"),
    ("Stat", {"path": "/etc/passwd/x"}, "not_found"),
    ("Stat", {"path": "~other"}, "invalid_argument"),
    ("Stat", {"path": "a\0b"}, "invalid_argument"),
    ("Stat", {"path": 5}, "invalid_argument"),
    ("ListDir", {"path": "/nope"}, "not_found"),
    ("ListDir", {"path": "/etc/passwd"}, "invalid_argument"),
    ("ListDir", {"path": "/", "depth": -1}, "invalid_argument"),
    ("MakeDir", {"path": "/tmp"}, "already_exists"),
    ("MakeDir", {"path": "/etc/passwd"}, "invalid_argument"),
    ("MakeDir", {"path": "/etc/passwd/x"}, "invalid_argument"),
    ("Move", {"source": "/nope", "destination": "/tmp/x"}, "not_found"),
    ("Move", {"source": "/etc/group", "destination": "/etc/passwd/x"}, "invalid_argument"),
    ("Move", {"source": "/home/user", "destination": "/home/user/x"}, "internal"),
    ("Remove", {"path": "/proc/1"}, "internal"),
    ("CreateWatcher", {"path": "/nope"}, "not_found"),
    ("CreateWatcher", {"path": "/etc/passwd"}, "invalid_argument"),
    ("GetWatcherEvents", {"watcherId": "w0"}, "not_found"),
    ("RemoveWatcher", {"watcherId": "w0"}, "not_found"),
    ("Unheard", {}, "unimplemented"),
]


@pytest.mark.parametrize(("method", "message", "expected"), FAILURES)
def test_failures_have_their_code(
    client: httpx.Client, method: str, message: Json, expected: str
) -> None:
    answer = unary(client, method, message)
    assert answer.status_code >= 400 and code(answer) == expected


def test_a_loop_of_links_is_a_failed_precondition(client: httpx.Client, home: Path) -> None:
    (home / "a").symlink_to("b")
    (home / "b").symlink_to("a")
    assert code(unary(client, "ListDir", {"path": f"{inside(home)}/a"})) == "failed_precondition"


def test_others_are_served_while_a_large_tree_is_removed(
    client: httpx.Client, daemon: Daemon, home: Path
) -> None:
    for directory in range(20):
        (home / f"big/{directory}").mkdir(parents=True)
        for number in range(500):
            (home / f"big/{directory}/{number}").touch()
    request = client.build_request(
        "POST", "/filesystem.Filesystem/Remove", json={"path": f"{inside(home)}/big"}
    )
    with daemon.client() as second:
        second.get("/health")
        with closing(client.send(request, stream=True)) as response:
            slowest = 0.0
            while (home / "big").exists():
                began = time.monotonic()
                assert second.get("/health").status_code == 204
                slowest = max(slowest, time.monotonic() - began)
            assert response.status_code == 200
    assert slowest < 0.2


# -- watching


def events_of(client: httpx.Client, watcher: str) -> list[tuple[str, str]]:
    answer = unary(client, "GetWatcherEvents", {"watcherId": watcher})
    return [(e["name"], e["type"].removeprefix("EVENT_TYPE_")) for e in answer.json()["events"]]


def watch(client: httpx.Client, path: Path, **options: bool) -> str:
    answer = unary(client, "CreateWatcher", {"path": inside(path), **options})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["watcherId"])


def test_writing_a_new_file_is_exactly_create_chmod_write(client: httpx.Client, home: Path) -> None:
    watcher = watch(client, home)
    files = {"file": ("f.txt", b"content")}
    for _ in range(3):
        response = client.post("/files", params={"path": f"{inside(home)}/f.txt"}, files=files)
        assert response.status_code == 200, response.text
        time.sleep(0.05)
        events = events_of(client, watcher)
        assert events == [("f.txt", "CREATE"), ("f.txt", "CHMOD"), ("f.txt", "WRITE")]
        (home / "f.txt").unlink()
        time.sleep(0.05)
        assert events_of(client, watcher) == [("f.txt", "REMOVE")]
    assert unary(client, "RemoveWatcher", {"watcherId": watcher}).json() == {}
    assert code(unary(client, "GetWatcherEvents", {"watcherId": watcher})) == "not_found"


def test_a_watch_that_is_not_recursive_stays_in_its_directory(
    client: httpx.Client, home: Path
) -> None:
    (home / "sub").mkdir()
    watcher = watch(client, home)
    (home / "sub/hidden").touch()
    (home / "sub").rename(home / "moved")
    time.sleep(0.05)
    assert events_of(client, watcher) == [("sub", "RENAME"), ("moved", "CREATE")]


def test_a_recursive_watch_includes_directories_made_and_moved_later(
    client: httpx.Client, home: Path
) -> None:
    (home / "old/deep").mkdir(parents=True)
    watcher = watch(client, home, recursive=True)
    (home / "old/deep/1").touch()
    (home / "new/a/b").mkdir(parents=True)
    (home / "new/a/b/2").touch()
    time.sleep(0.1)
    events = events_of(client, watcher)
    for name in ("old/deep/1", "new", "new/a", "new/a/b", "new/a/b/2"):
        assert events.count((name, "CREATE")) == 1, (name, events)

    (home / "old").rename(home / "renamed")
    time.sleep(0.1)
    (home / "renamed/deep/3").touch()
    (home / "renamed").rename(home.parent / "left-the-tree")
    time.sleep(0.1)
    (home.parent / "left-the-tree/deep/4").touch()
    time.sleep(0.1)
    assert [e for e in events_of(client, watcher) if e[1] != "CHMOD"] == [
        ("old", "RENAME"),
        ("renamed", "CREATE"),
        ("renamed/deep/3", "CREATE"),
        ("renamed", "RENAME"),
    ]


def test_a_watched_directory_that_goes_says_so(client: httpx.Client, home: Path) -> None:
    (home / "gone").mkdir()
    answer = unary(client, "CreateWatcher", {"path": f"{inside(home)}/gone", "recursive": True})
    (home / "gone").rmdir()
    time.sleep(0.05)
    assert events_of(client, answer.json()["watcherId"]) == [(".", "REMOVE")]


def test_two_watchers_of_one_directory_get_their_own_events(
    client: httpx.Client, home: Path
) -> None:
    (home / "sub").mkdir()
    above = watch(client, home, recursive=True)
    answer = unary(client, "CreateWatcher", {"path": f"{inside(home)}/sub"})
    (home / "sub/x").touch()
    time.sleep(0.05)
    assert ("sub/x", "CREATE") in events_of(client, above)
    assert ("x", "CREATE") in events_of(client, answer.json()["watcherId"])
    unary(client, "RemoveWatcher", {"watcherId": above})
    (home / "sub/y").touch()
    time.sleep(0.05)
    assert ("y", "CREATE") in events_of(client, answer.json()["watcherId"])


def test_a_streamed_watch_starts_keeps_alive_and_carries_entries(
    client: httpx.Client, home: Path
) -> None:
    message = {"path": inside(home), "includeEntry": True}
    with stream(client, "WatchDir", message, **{"Keepalive-Ping-Interval": "1"}) as opened:
        assert opened.event() == {"start": {}}
        assert opened.event() == {"keepalive": {}}
        (home / "x").touch()
        event = opened.event()["filesystem"]
        assert (event["name"], event["type"]) == ("x", "EVENT_TYPE_CREATE")
        assert event["entry"]["path"] == f"{inside(home)}/x"
        (home / "x").unlink()
        kinds = []
        while "EVENT_TYPE_REMOVE" not in kinds:
            event = opened.event().get("filesystem", {})
            kinds.append(event.get("type"))
        assert "entry" not in event


def test_a_streamed_watch_ends_with_the_calls_timeout(client: httpx.Client, home: Path) -> None:
    message, headers = {"path": inside(home)}, {"Connect-Timeout-Ms": "200"}
    with stream(client, "WatchDir", message, **headers) as opened:
        assert opened.rest() == [{"start": {}}]
        assert opened.end is not None and opened.end["error"]["code"] == "deadline_exceeded"


def test_events_that_nobody_fetches_are_bounded(client: httpx.Client, home: Path) -> None:
    watcher = watch(client, home)
    script = f"cd {home.name}; for i in $(seq 9000); do echo > $i; done"
    assert run(client, start(script)).exit_code == 0
    time.sleep(1.5)  # 18,000 events; to ask sooner would be to fetch them
    answer = unary(client, "GetWatcherEvents", {"watcherId": watcher})
    assert code(answer) in ("resource_exhausted", "internal")
    assert unary(client, "RemoveWatcher", {"watcherId": watcher}).json() == {}
