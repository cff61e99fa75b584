"""The pure parts: tokens and signatures, users, header fields, multipart, frames, entries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandgate.envd.auth import AccessToken, AuthError, basic_username, sign
from sandgate.envd.config import EnvdConfig
from sandgate.envd.encoding import (
    ByteRange,
    NotAcceptableError,
    UnsatisfiableRangeError,
    content_disposition,
    header_parameters,
    http_date,
    parse_http_date,
    parse_range,
    wants_gzip,
)
from sandgate.envd.paths import PathError, resolve
from sandgate.envd.trees import remove
from sandgate.envd.users import User, UserDatabase
from sandgate.envd.xattrs import MetadataError, from_headers

ME = User("user", 1000, 1000, "/home/user")


def test_a_configuration_survives_its_json_and_bad_ones_are_refused() -> None:
    config = EnvdConfig("i1", "base", None, {"A": "ü"}, default_workdir="/w")
    assert EnvdConfig.from_json(config.to_json()) == config
    for text in ("[]", "{}", '{"sandbox_id": "x", "unknown": 1}', "nonsense"):
        with pytest.raises(ValueError):
            EnvdConfig.from_json(text)


# -- auth


def signed(**changes: str) -> dict[str, str]:
    return {"path": "/a b", "signature": sign("t", "/a b", "read", "", None), **changes}


@pytest.mark.parametrize(
    ("given_", "query", "message"),
    [
        ("t", {}, None),
        ("x", signed(), "does not match"),
        (None, {}, "missing signature query parameter"),
        (None, signed(), None),
        (None, signed(path="/a"), "invalid signature"),
        (None, signed(username="root"), "invalid signature"),
        (None, signed(signature="v1_ü"), "invalid signature"),
        (None, signed(signature_expiration="99"), "invalid signature"),
        (
            None,
            signed(signature=sign("t", "/a b", "read", "", "99"), signature_expiration="99"),
            "signature is already expired",
        ),
        (
            None,
            signed(signature=sign("t", "/a b", "read", "", "100"), signature_expiration="100"),
            None,
        ),
        (
            None,
            signed(signature=sign("t", "/a b", "read", "", "x"), signature_expiration="x"),
            "signature is already expired",
        ),
        (None, signed(signature=sign("t", "/a b", "write", "", None)), "invalid signature"),
    ],
)
def test_a_file_request_needs_the_token_or_a_signature(
    given_: str | None, query: dict[str, str], message: str | None
) -> None:
    if message is None:
        AccessToken("t").check_signed(given_, query, "read", 100.9)
        return
    with pytest.raises(AuthError, match=message):
        AccessToken("t").check_signed(given_, query, "read", 100.9)


def test_signatures_are_those_of_the_sdk() -> None:
    from e2b.sandbox.signature import get_signature

    ours = sign("token", "/x y", "write", "root", None)
    assert ours == get_signature("/x y", "write", "root", "token")["signature"]
    theirs = get_signature("/x", "read", None, "token", 60)
    assert sign("token", "/x", "read", "", str(theirs["expiration"])) == theirs["signature"]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (None, None),
        ("Basic cm9vdDo=", "root"),
        ("basic cm9vdDpwdw==", "root"),
        ("Basic cm9vdA==", None),
        ("Basic !!", None),
        ("Basic /w==", None),
        ("Bearer cm9vdDo=", None),
        ("Basic Og==", ""),
    ],
)
def test_the_user_is_read_from_basic_authentication(header: str | None, name: str | None) -> None:
    assert basic_username(header) == name


# -- users and paths


def test_users_are_read_from_hostile_files(tmp_path: Path) -> None:
    users = UserDatabase(tmp_path)
    assert users.find("user") is None and users.user_name(7) == "7"
    lines = ["", "x", "a:b:c", "neg:x:-1:0::/:", "big:x:99999999999:0::/:", "arab:x:٣:0::/:"]
    user = "user:x:1000:1000:,,,:/home/user:/bin/bash"
    (tmp_path / "passwd").write_text(
        "\n".join([*lines, user, "user:x:0:0::/:/bin/sh", "r:x:5:6::rel:"])
    )
    (tmp_path / "group").write_bytes(b"\xff\n\nsudo:x:27:user,a\nuser:x:1000:user\ndup:x:27:user")
    assert users.find("user") == User("user", 1000, 1000, "/home/user", (1000, 27))
    assert users.find("r") == User("r", 5, 6, "/", (6,))
    assert [users.find(line.split(":")[0]) for line in lines] == [None] * len(lines)
    assert (users.user_name(1000), users.group_name(27), users.group_name(9)) == (
        "user",
        "sudo",
        "9",
    )


def test_users_are_read_again_after_a_change_and_never_from_a_pipe(tmp_path: Path) -> None:
    users = UserDatabase(tmp_path)
    (tmp_path / "passwd").write_text("a:x:1:1::/:\n")
    assert users.find("a") and not users.find("b")
    (tmp_path / "passwd").write_text("a:x:1:1::/:\nb:x:2:2::/:\n")
    assert users.find("b")
    (tmp_path / "passwd").unlink()
    os.mkfifo(tmp_path / "passwd")
    assert users.find("a") is None


@pytest.mark.parametrize(
    ("path", "workdir", "resolved"),
    [
        ("", None, "/home/user"),
        ("", "/w", "/w"),
        ("a/../b", "/w", "/home/user/b"),
        ("./a", None, "/home/user/a"),
        ("~", None, "/home/user"),
        ("~/x", None, "/home/user/x"),
        ("/a/../b", None, "/a/../b"),
        ("../../..", None, "/"),
    ],
)
def test_paths_are_resolved_for_the_user(path: str, workdir: str | None, resolved: str) -> None:
    assert resolve(path, ME, workdir) == resolved


@pytest.mark.parametrize("path", ["~root", "a\0b", "\ud800"])
def test_impossible_paths_are_refused(path: str) -> None:
    with pytest.raises(PathError):
        resolve(path, ME, None)


# -- header fields


@pytest.mark.parametrize(
    ("header", "gzip"),
    [
        (None, False),
        ("gzip", True),
        ("GZIP", True),
        ("gzip, deflate", False),
        ("gzip;q=1.0, identity;q=0.5", True),
        ("identity, gzip;q=0.5", False),
        ("gzip;q=0", False),
        ("*", False),
        ("*;q=0, gzip", True),
        ("br", False),
    ],
)
def test_gzip_is_used_when_it_is_asked_for(header: str | None, gzip: bool) -> None:
    assert wants_gzip(header) is gzip


@pytest.mark.parametrize(
    ("header", "identity_only"),
    [("identity;q=0", False), ("*;q=0", False), ("gzip, identity;q=0", True)],
)
def test_what_no_one_can_serve_is_not_acceptable(header: str, identity_only: bool) -> None:
    with pytest.raises(NotAcceptableError):
        wants_gzip(header, identity_only)


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (None, None),
        ("bytes=0-0", ByteRange(0, 0)),
        ("bytes=2-", ByteRange(2, 9)),
        ("bytes=2-99", ByteRange(2, 9)),
        ("bytes=-3", ByteRange(7, 9)),
        ("bytes=-99", ByteRange(0, 9)),
        ("bytes=0-1,4-5", None),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("lines=1-2", None),
        ("bytes=" + "9" * 30 + "-", None),
    ],
)
def test_one_byte_range_is_understood(header: str | None, part: ByteRange | None) -> None:
    assert parse_range(header, 10) == part


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_a_range_behind_the_end_is_unsatisfiable(header: str) -> None:
    with pytest.raises(UnsatisfiableRangeError):
        parse_range(header, 10)


def test_dates_survive_and_bad_ones_are_ignored() -> None:
    assert parse_http_date(http_date(1_700_000_000.9)) == 1_700_000_000
    assert parse_http_date("soon") is None and parse_http_date(None) is None


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("a.txt", "inline; filename=a.txt"),
        ('a "b".txt', 'inline; filename="a \\"b\\".txt"'),
        ("ü\r\n", "inline; filename*=utf-8''%C3%BC%0D%0A"),
    ],
)
def test_a_file_name_cannot_break_out_of_its_header(name: str, field: str) -> None:
    assert content_disposition(name) == field


@pytest.mark.parametrize(
    ("value", "parameters"),
    [
        ('form-data; name="file"; filename="/a/b c"', {"name": "file", "filename": "/a/b c"}),
        ("form-data; name=file; filename=../x", {"name": "file", "filename": "../x"}),
        (r'form-data; filename="a\"b\\c"', {"filename": 'a"b\\c'}),
        ("form-data; filename*=UTF-8''%C3%BC%2Fx", {"filename": "ü/x"}),
        ('form-data; filename="a;b"; name="f"', {"filename": "a;b", "name": "f"}),
        ('form-data; filename="open', {"filename": "ope"}),
    ],
)
def test_file_names_keep_their_slashes(value: str, parameters: dict[str, str]) -> None:
    assert header_parameters(value) == ("form-data", parameters)


@given(st.text(max_size=200))
def test_no_header_breaks_the_parsers(value: str) -> None:
    header_parameters(value)
    parse_http_date(value)
    try:
        wants_gzip(value)
        parse_range(value, 100)
    except (NotAcceptableError, UnsatisfiableRangeError):
        pass


def test_metadata_is_read_from_headers_and_bounded() -> None:
    headers = {"X-Metadata-Key": "v v", "X-Metadata-": "none", "Other": "x", "x-metadata-e": ""}
    assert from_headers(headers) == {"key": "v v", "e": ""}
    for bad in (
        {"X-Metadata-A": "ü"},
        {"X-Metadata-" + "a" * 247: ""},
        {"X-Metadata-A": "b" * 4096},
    ):
        with pytest.raises(MetadataError):
            from_headers(bad)


async def test_a_tree_deeper_than_any_path_is_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    name = "d" * 60
    for _ in range(150):
        os.mkdir(name, dir_fd=fd)
        os.mkdir("side", dir_fd=fd)
        os.symlink(tmp_path, "link", dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    await remove(f"{top}/")
    assert not top.exists() and tmp_path.exists()
    await remove(str(top))
