"""Checks of what belongs to the node: its user, its templates, trust in its certificate."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import sandgate
from sandgate.cli.doctor.finding import Finding, fail, ok, warn
from sandgate.cli.doctor.trial import trial
from sandgate.cli.trust import TRUST_VARIABLES, certificates
from sandgate.settings import Settings
from sandgate.supervisor.layout import Accounts, LayoutError, ServiceAccount
from sandgate.templates import TemplateError, load
from sandgate.templates.definition import load_definitions


def service_user(settings: Settings) -> Finding:
    """Are there unprivileged users, and can they run our programs?"""
    try:
        accounts = Accounts.of(settings.service_user).all
    except LayoutError as error:
        text, _, fix = str(error).partition("; ")
        return fail(text, fix)
    names = ", ".join(account.name for account in accounts)
    if os.geteuid() != 0:
        return ok(f"users {names}")
    package, python = Path(sandgate.__file__), Path(sys.executable).resolve()
    place = next(path for path in (settings.data_dir, *settings.data_dir.parents) if path.is_dir())
    for account in accounts:
        problem = trial(partial(_as_user, account, lambda: _enter(place)))
        if problem is not None:
            return fail(
                f"user {account.name} cannot pass through {place}: {problem}",
                f"chmod o+x {place} and the directories above it, or set another data_dir",
            )
        problem = trial(partial(_as_user, account, lambda: _read(package, python)))
        if problem is not None:
            return warn(
                f"user {account.name} cannot read the installation: {problem}",
                "install where all users can read, with a Python such as /usr/bin/python3 "
                "(what is imported late fails otherwise)",
            )
    return ok(f"users {names} can run {package.parent}")


def _as_user(account: ServiceAccount, action: Callable[[], None]) -> None:
    os.setgroups([])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    action()


def _enter(directory: Path) -> None:
    if not os.access(f"{directory}/.", os.F_OK):
        raise PermissionError("permission denied")


def _read(*paths: Path) -> None:
    for path in paths:
        with path.open("rb"):
            pass


def templates(settings: Settings) -> Finding:
    """Are the templates built?"""
    try:
        built = load(settings.data_dir)
    except TemplateError as error:
        return fail(str(error), "sandgate template build --force")
    missing = sorted(set(load_definitions()) - set(built))
    if missing:
        return fail(f"not built: {', '.join(missing)}", "sandgate template build")
    return ok(f"built: {', '.join(sorted(built))}")


def certificate_trust(settings: Settings) -> Finding:
    """What must a client on this machine set, and is it set here?"""
    if settings.tls_cert is not None:
        return ok(f"the operator's certificate {settings.tls_cert}; clients must trust its issuer")
    authority = settings.data_dir / "certificates" / "ca.pem"
    if not authority.is_file():
        return ok("the node makes its own authority at its first start")
    own = certificates(authority)
    without = [
        name for name in TRUST_VARIABLES if not own <= certificates(Path(os.environ.get(name, "")))
    ]
    if without:
        return warn(
            f"programs started here do not trust the node's authority ({', '.join(without)})",
            'eval "$(sandgate env)"',
        )
    return ok(f"{', '.join(TRUST_VARIABLES)} hold the node's authority")
