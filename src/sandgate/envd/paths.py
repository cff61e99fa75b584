"""Paths as clients write them, and the directories above them."""

from __future__ import annotations

import errno
import os
import stat

from sandgate.envd.users import User


class PathError(ValueError):
    """The path cannot be used; the text names it and says why."""


def resolve(path: str, user: User, workdir: str | None) -> str:
    """Absolute path that a client means.

    Empty is `workdir` (or the user's home), `~` and relative paths start at the user's home.
    Absolute paths are taken as they are: `..` behind a symbolic link is the kernel's business.

    :raises PathError: for `~name`, and for what no path can contain.
    """
    if not path:
        path = workdir or user.home
    if "\0" in path:
        raise PathError(f"path {path!r} contains a NUL character; remove it")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as exc:
        raise PathError(f"path {path!r} is not valid Unicode: {exc.reason}") from exc

    if path.startswith("~"):
        if len(path) > 1 and path[1] != "/":
            raise PathError(
                f"failed to expand path '{path}' for user '{user.name}': "
                "cannot expand user-specific home dir; write the home directory out"
            )
        path = user.home + path[1:]
    if path.startswith("/"):
        return path
    return os.path.normpath(f"{user.home}/{path}")


def ensure_directories(path: str, user: User) -> None:
    """Make `path` and what is missing above it (mode 0755), owned by `user`.

    :raises NotADirectoryError: if something on the way is no directory.
    :raises OSError: if the kernel refuses.
    """
    missing = []
    while True:
        try:
            if not stat.S_ISDIR(os.stat(path).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "path is a file", path)
            break
        except FileNotFoundError:
            missing.append(path)
            parent = os.path.dirname(path.rstrip("/"))
            if parent == path:
                raise
            path = parent
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            if not os.path.isdir(directory):
                raise
        os.chown(directory, user.uid, user.gid)
