"""The node's own overlay layer: what all its sandboxes see on top of their template."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

from cryptography import x509

from sandgate.templates.definition import TemplateError
from sandgate.templates.root import build_environment, remove_tree
from sandgate.templates.store import Template

CA_INSIDE = Path("/usr/local/share/ca-certificates/sandgate.crt")
"""Where a sandbox finds the node's own certificate authority."""
BUNDLE_INSIDE = Path("/etc/ssl/certs/ca-certificates.crt")
"""Where a sandbox finds every authority it trusts, the node's own included."""

_ASIDE = ".node-layer.old"
LOGIN_INSIDE = Path("/etc/profile")
"""What every login shell reads first; every command of the SDKs begins with one."""
_ASK_ID, _KNOW_ID = b"$(id -u)", b"${EUID:-$(id -u)}"
"""bash knows its user without running `id`, which takes longer than bash itself."""

PROFILE_INSIDE = Path("/etc/profile.d/sandgate.sh")
"""Tells programs that bring a store of their own about it; what a command sets itself wins."""
_PROFILE = f"""\
export NODE_EXTRA_CA_CERTS="${{NODE_EXTRA_CA_CERTS-{CA_INSIDE}}}"
export REQUESTS_CA_BUNDLE="${{REQUESTS_CA_BUNDLE-{BUNDLE_INSIDE}}}"
"""


def write_node_layer(data_dir: Path, domain: str, ca_pem: bytes | None, base: Template) -> Path:
    """Write `<data_dir>/node-layer` and return it, for use as the topmost read-only layer.

    `ca_pem` is the node's own authority, one certificate, or None if its certificate comes from one
    that is trusted anyway. `domain` is noted beside the certificate. A layer that is right already
    is left alone. Another steps aside until `prune_node_layers`, for sandboxes of an earlier run
    may still lie on it. Raises TemplateError.
    """
    target, fresh = data_dir / "node-layer", data_dir / ".node-layer.new"
    if fresh.exists():
        remove_tree(fresh)
    fresh.mkdir()
    fresh.chmod(0o755)
    files = _login_files(base)
    if ca_pem is not None:
        files |= _trust_files(domain, ca_pem, base)
    for inside, content in files.items():
        _place(fresh, base, inside, content)
    if target.is_dir():
        if _contents(target) == _contents(fresh):
            remove_tree(fresh)
            return target
        # Not to where builds go: the templates may be on another file system.
        aside = data_dir / _ASIDE
        aside.mkdir(exist_ok=True)
        target.rename(aside / secrets.token_hex(4))
    fresh.rename(target)
    return target


def prune_node_layers(data_dir: Path) -> None:
    """Delete the layers that stepped aside; no sandbox may lie on one any more."""
    if (data_dir / _ASIDE).is_dir():
        remove_tree(data_dir / _ASIDE)


def _login_files(base: Template) -> dict[Path, bytes | Path]:
    """The base's own file without the process that Debian's starts; nothing if it starts none."""
    path = _find_in_base(base, LOGIN_INSIDE)
    text = b"" if path is None else path.read_bytes()
    return {LOGIN_INSIDE: text.replace(_ASK_ID, _KNOW_ID)} if _ASK_ID in text else {}


def _trust_files(domain: str, ca_pem: bytes, base: Template) -> dict[Path, bytes | Path]:
    """What `update-ca-certificates` would make: contents, or a Path for a symbolic link."""
    try:
        certificates = x509.load_pem_x509_certificates(ca_pem)
    except ValueError as error:
        raise TemplateError(f"the authority of {domain} is not PEM: {error}") from error
    if len(certificates) != 1:
        raise TemplateError(f"the authority of {domain} must be one certificate, not a chain")
    # Text outside the armour is a comment to every reader of PEM.
    marked = f"# Sandgate node {domain}\n".encode() + ca_pem.strip() + b"\n"
    certs = BUNDLE_INSIDE.parent
    return {
        CA_INSIDE: marked,
        BUNDLE_INSIDE: _in_base(base, BUNDLE_INSIDE).read_bytes() + marked,
        PROFILE_INSIDE: _PROFILE.encode(),
        certs / "sandgate.pem": CA_INSIDE,
        # OpenSSL, and Python with it, looks authorities up by a hash of their name.
        certs / f"{_subject_hash(ca_pem)}.0": Path("sandgate.pem"),
    }


def _subject_hash(ca_pem: bytes) -> str:
    result = subprocess.run(
        ["openssl", "x509", "-noout", "-subject_hash"],
        input=ca_pem,
        env=build_environment(),
        capture_output=True,
        check=False,
    )
    if result.returncode != 0:
        raise TemplateError(f"openssl cannot read the authority: {result.stderr.decode().strip()}")
    return result.stdout.decode().strip()


def _place(layer: Path, base: Template, inside: Path, content: bytes | Path) -> None:
    """Put a file into the layer. Folders on the way get the base's owner and mode, for overlayfs
    shows those of the topmost layer."""
    folder = layer
    for depth, part in enumerate(inside.parts[1:-1], start=2):
        folder = folder / part
        if not folder.exists():
            status = _in_base(base, Path(*inside.parts[:depth])).stat()
            folder.mkdir()
            os.chown(folder, status.st_uid, status.st_gid)
            folder.chmod(status.st_mode & 0o7777)
    target = folder / inside.name
    if isinstance(content, Path):
        target.symlink_to(content)
    else:
        target.write_bytes(content)
        target.chmod(0o644)


def _in_base(base: Template, inside: Path) -> Path:
    """Host path of a file in the topmost layer of the template that has it."""
    path = _find_in_base(base, inside)
    if path is None:
        raise TemplateError(
            f"template {base.name!r} has no {inside}; run `sandgate template build`"
        )
    return path


def _find_in_base(base: Template, inside: Path) -> Path | None:
    paths = (layer / inside.relative_to("/") for layer in base.layers)
    return next((path for path in paths if path.exists()), None)


def _contents(layer: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(layer)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        for path in sorted(layer.rglob("*"))
        if path.is_symlink() or path.is_file()
    }
