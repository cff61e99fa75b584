"""Built templates on disk: `<data_dir>/templates/<name>/{rootfs,manifest.json}`."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from sandgate.templates.definition import TemplateError

RETIRED = ".retired"
_REBUILD = "run `sandgate template build`"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Template:
    """A built template, ready to be mounted."""

    name: str
    layers: tuple[Path, ...]
    """Read-only overlay layers, topmost first (the order of overlayfs's `lowerdir`)."""
    aliases: tuple[str, ...]
    built_at: datetime
    definition_hash: str
    build_id: str
    """Differs from build to build, also of the same definition."""
    interpreter: bool = False
    """Whether its sandboxes run code at port 49999."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is recorded about a build."""

    name: str
    aliases: list[str]
    build_id: str
    parent: str | None
    parent_build_id: str | None
    definition_hash: str
    built_at: str
    """RFC 3339, UTC."""
    seconds: float
    size_bytes: int
    packages: dict[str, str]
    """Version by name of every Debian package inside."""
    interpreter: bool = False

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        path.chmod(0o644)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises FileNotFoundError, or TemplateError if the file is damaged."""
        text = path.read_text()
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise TemplateError(
                f"{path} is damaged ({error}); delete {path.parent} and {_REBUILD}"
            ) from error


def templates_dir(data_dir: Path) -> Path:
    """Where a node's templates live."""
    return data_dir / "templates"


def read_manifests(data_dir: Path) -> dict[str, Manifest]:
    """The manifests of all built templates by name, stale ones included. Raises TemplateError."""
    manifests: dict[str, Manifest] = {}
    for path in sorted(templates_dir(data_dir).glob("[!.]*/manifest.json")):
        manifest = Manifest.read(path)
        manifests[manifest.name] = manifest
    return manifests


def load(data_dir: Path) -> dict[str, Template]:
    """All usable templates by name. Raises TemplateError if a manifest is damaged.

    One that is a layer over a build that is gone (its parent was built anew a moment ago) is left
    out with a warning: the others must not suffer from it.
    """
    manifests = read_manifests(data_dir)
    templates = {}
    for name in manifests:
        try:
            templates[name] = resolve(data_dir, manifests, name)
        except TemplateError as error:
            _log.warning("%s", error)
    return templates


def find(templates: Mapping[str, Template], reference: str) -> Template | None:
    """The template that a name or an alias stands for; None if there is none."""
    if reference in templates:
        return templates[reference]
    return next((item for item in templates.values() if reference in item.aliases), None)


def retire(data_dir: Path, replaced: Path, name: str) -> None:
    """Move a build or layer that is no longer current to where `prune` deletes it."""
    folder = templates_dir(data_dir) / RETIRED
    folder.mkdir(parents=True, exist_ok=True)
    replaced.rename(folder / f"{name}.{secrets.token_hex(4)}")


def resolve(data_dir: Path, manifests: Mapping[str, Manifest], name: str) -> Template:
    """One of the built templates, with its ancestors' layers. Raises TemplateError."""
    layers: list[Path] = []
    step, build_id = name, manifests[name].build_id
    while True:
        manifest = manifests.get(step)
        if manifest is None or manifest.build_id != build_id:
            raise TemplateError(
                f"template {name!r} is a layer over a build of {step!r} that is gone; {_REBUILD}"
            )
        layer = templates_dir(data_dir) / step / "rootfs"
        if not layer.is_dir():
            raise TemplateError(f"template {step!r}: {layer} is missing; {_REBUILD} --force")
        layers.append(layer)
        if manifest.parent is None or manifest.parent_build_id is None:
            break
        step, build_id = manifest.parent, manifest.parent_build_id
    own = manifests[name]
    return Template(
        name=name,
        layers=tuple(layers),
        aliases=tuple(own.aliases),
        built_at=datetime.fromisoformat(own.built_at),
        definition_hash=own.definition_hash,
        build_id=own.build_id,
        interpreter=own.interpreter,
    )
