"""What kernels find in their environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

HOME = "/root"
WORKDIR = "/home/user"

_AUTHORITY = Path("/usr/local/share/ca-certificates/sandgate.crt")
_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def base() -> dict[str, str]:
    """Of every kernel: root's, and the node's authority for programs that have a list of theirs."""
    variables = {
        "HOME": HOME,
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    if _AUTHORITY.exists():
        variables["NODE_EXTRA_CA_CERTS"] = str(_AUTHORITY)
        variables["REQUESTS_CA_BUNDLE"] = str(_BUNDLE)
    return variables


def check(variables: object) -> dict[str, str]:
    """`variables` if they are names and values of the environment, else ValueError."""
    if not isinstance(variables, Mapping):
        raise ValueError(f"env_vars: must be an object of strings, not {variables!r:.80}")
    for name, value in variables.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"env_vars: {name!r:.80} is not a name; use letters, digits and '_', no digit first"
            )
        if not isinstance(value, str) or "\0" in value:
            raise ValueError(f"env_vars: the value of {name} must be a string without NUL")
    return dict(variables)
