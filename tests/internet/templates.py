"""The built templates, for a node whose sandboxes trust the small internet's CA."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from internet import namespaces

_DEFAULT_TEMPLATES = Path("/var/lib/sandgate/templates")
_CERTIFICATES = "rootfs/etc/ssl/certs"


def built_templates() -> Path:
    """Where the templates are that `make install` built, or that SANDGATE_TEST_TEMPLATES names."""
    templates = Path(os.environ.get("SANDGATE_TEST_TEMPLATES", _DEFAULT_TEMPLATES))
    if not (templates / "base").is_dir():
        raise FileNotFoundError(
            f"no templates in {templates}: run `make install`, or point SANDGATE_TEST_TEMPLATES "
            "at a directory of built templates"
        )
    return templates


def provide(target: Path, authority: Path | None) -> None:
    """Make the built templates appear as `target`.

    With an `authority`, its certificate is added to the trusted ones of `base`, in a copy made of
    hard links; the built templates themselves stay as they are.
    """
    source = built_templates()
    if authority is None:
        target.symlink_to(source)
        return
    target.mkdir()
    for template in source.glob("[!.]*"):
        if template.name != "base":
            (target / template.name).symlink_to(template)
    base = target / "base"
    if source.stat().st_dev == target.stat().st_dev:
        namespaces.run("cp", "-al", str(source / "base"), str(base))
    else:
        namespaces.run("cp", "-a", str(source / "base"), str(base))
    certificates = base / _CERTIFICATES
    bundle = certificates / "ca-certificates.crt"
    trusted = bundle.read_text() + authority.read_text()
    bundle.unlink()  # or the template that it is linked to would change
    bundle.write_text(trusted)
    name = namespaces.run("openssl", "x509", "-noout", "-hash", "-in", str(authority)).strip()
    shutil.copyfile(authority, certificates / f"{name}.0")
    for path in (bundle, certificates / f"{name}.0"):
        path.chmod(0o644)
