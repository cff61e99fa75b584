"""The git helpers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from sdk.conformance.base import (
    Run,
    check,
    done,
    member,
)


@contextlib.asynccontextmanager
async def repository(run: Run) -> AsyncIterator[tuple[Any, str]]:
    """The git helpers, and a repository with one commit on `main`."""
    git = member(run.sandbox, "git")
    async with run.folder() as folder:
        path = f"{folder}/repo"
        await done(git.init(path, initial_branch="main"))
        await done(run.sandbox.files.write(f"{path}/a", "one\n"))
        await done(git.add(path))
        await done(git.commit(path, "first", author_name="A", author_email="a@example.com"))
        yield git, path


@check("git.init, add, commit, status")
async def _(run: Run) -> None:
    async with repository(run) as (git, path):
        status = await done(git.status(path))
        assert (status.current_branch, status.is_clean) == ("main", True)
        await done(run.sandbox.files.write(f"{path}/b", "new"))
        changed = (await done(git.status(path))).file_status
        assert [item.name for item in changed] == ["b"]


@check("git.branches, create_branch, checkout_branch, delete_branch")
async def _(run: Run) -> None:
    async with repository(run) as (git, path):
        await done(git.create_branch(path, "side"))
        found = await done(git.branches(path))
        assert (sorted(found.branches), found.current_branch) == (["main", "side"], "side")
        await done(git.checkout_branch(path, "main"))
        await done(git.delete_branch(path, "side"))
        assert (await done(git.branches(path))).branches == ["main"]


@check("git.clone, push, pull")
async def _(run: Run) -> None:
    async with repository(run) as (git, path):
        await done(git.init(f"{path}.git", bare=True, initial_branch="main"))
        await done(member(git, "remote_add")(path, "origin", f"{path}.git"))
        await done(git.push(path, remote="origin", branch="main"))
        await done(git.clone(f"{path}.git", f"{path}-copy"))
        await done(run.sandbox.files.write(f"{path}/a", "two\n"))
        await done(git.add(path))
        await done(git.commit(path, "second", author_name="A", author_email="a@example.com"))
        await done(git.push(path, remote="origin", branch="main"))
        await done(git.pull(f"{path}-copy"))
        assert await done(run.sandbox.files.read(f"{path}-copy/a")) == "two\n"


@check("git.remote_add, remote_get")
async def _(run: Run) -> None:
    async with repository(run) as (git, path):
        await done(member(git, "remote_add")(path, "origin", "https://git.example.com/a.git"))
        url = await done(member(git, "remote_get")(path, "origin"))
        assert url == "https://git.example.com/a.git"


@check("git.reset, restore")
async def _(run: Run) -> None:
    async with repository(run) as (git, path):
        reset, restore = member(git, "reset"), member(git, "restore")
        await done(run.sandbox.files.write(f"{path}/a", "spoilt\n"))
        await done(restore(path, ["a"]))
        assert await done(run.sandbox.files.read(f"{path}/a")) == "one\n"
        await done(run.sandbox.files.write(f"{path}/a", "spoilt\n"))
        await done(reset(path, mode="hard"))
        assert await done(run.sandbox.files.read(f"{path}/a")) == "one\n"


@check("git.set_config, get_config, configure_user")
async def _(run: Run) -> None:
    async with repository(run) as (git, path):
        await done(git.set_config("user.name", "B", scope="local", path=path))
        assert await done(git.get_config("user.name", scope="local", path=path)) == "B"
        await done(git.configure_user("C", "c@example.com", scope="local", path=path))
        assert await done(git.get_config("user.email", scope="local", path=path)) == "c@example.com"


@check("git.dangerously_authenticate")
async def _(run: Run) -> None:
    authenticate = member(member(run.sandbox, "git"), "dangerously_authenticate")
    await done(authenticate("name", "secret", host="git.example.com"))
    assert "name:secret@git.example.com" in (await run.sh("cat ~/.git-credentials")).stdout
