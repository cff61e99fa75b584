"""Template definitions: TOML files that say what a sandbox's root file system is made of."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

DEFINITIONS = Path(__file__).with_name("definitions")
"""Folder of the definitions that come with Sandgate."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?")
_MODE = re.compile(r"0?[0-7]{3,4}")
_LISTS = ("aliases", "packages", "python_packages", "dpkg_options", "apt_options", "steps")
_KEYS = {"name", "from", "suite", "files", "python_lock", "interpreter", *_LISTS}


class TemplateError(Exception):
    """A template cannot be read, found or built. The message says what to do."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file, owned by root, that the definition puts into the template."""

    path: str
    content: str
    mode: int


@dataclass(frozen=True, slots=True)
class Definition:
    """A parsed definition.

    With `parent` it is a layer over that template; with `suite` a Debian system of that release;
    with neither, an empty root that holds just its files.
    """

    name: str
    aliases: tuple[str, ...]
    parent: str | None
    suite: str | None
    packages: tuple[str, ...]
    python_packages: tuple[str, ...]
    """What is wanted, as ranges; `python_lock` says what is installed for it."""
    dpkg_options: tuple[str, ...]
    apt_options: tuple[str, ...]
    steps: tuple[str, ...]
    files: tuple[FileEntry, ...]
    python_lock: str | None = None
    """Text of a pip requirements file: every package with its version and its hashes."""
    interpreter: bool = False
    """Whether its sandboxes run code at port 49999."""


def parse(text: str, source: str, folder: Path = DEFINITIONS) -> Definition:
    """Parse one definition. Raises TemplateError.

    `source` names it in errors. `folder` has the file that its `python_lock` names.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TemplateError(f"{source}: not valid TOML: {error}") from error
    unknown = sorted(set(table) - _KEYS)
    if unknown:
        known = ", ".join(sorted(_KEYS))
        raise TemplateError(f"{source}: unknown key {unknown[0]!r}; known keys are {known}")
    if "name" not in table:
        raise TemplateError(f"{source}: the key 'name' is missing")
    lists = {key: _strings(table, key, source) for key in _LISTS}
    for name in (table["name"], *lists["aliases"]):
        _require(_NAME, name, "name", source, "lower-case letters, digits, '.', '_' and '-'")
    for package in lists["packages"]:
        _require(_PACKAGE, package, "packages", source, "a Debian package name")
    parent, suite = _optional(table, "from", source), _optional(table, "suite", source)
    if parent is not None and suite is not None:
        raise TemplateError(f"{source}: 'from' and 'suite' exclude each other; remove one")
    if suite is not None:
        _require(_NAME, suite, "suite", source, "the name of a Debian release")
    if parent is None and suite is None and lists["packages"]:
        raise TemplateError(f"{source}: 'packages' need a 'suite' or a 'from' to install into")
    if suite is None and (lists["dpkg_options"] or lists["apt_options"]):
        raise TemplateError(f"{source}: 'dpkg_options' and 'apt_options' need a 'suite'")
    interpreter = table.get("interpreter", False)
    if not isinstance(interpreter, bool):
        raise TemplateError(f"{source}: 'interpreter' must be true or false, not {interpreter!r}")
    return Definition(
        name=table["name"],
        parent=parent,
        suite=suite,
        python_lock=_lock(table, source, folder),
        interpreter=interpreter,
        files=tuple(_file(entry, source) for entry in _tables(table, "files", source)),
        **lists,
    )


def load_definitions(folder: Path = DEFINITIONS) -> dict[str, Definition]:
    """Read all `*.toml` of a folder; parents come before their children. Raises TemplateError."""
    found: dict[str, Definition] = {}
    for path in sorted(folder.glob("*.toml")):
        definition = parse(path.read_text(), str(path), folder)
        if definition.name in found:
            raise TemplateError(f"{path}: a template named {definition.name!r} exists already")
        found[definition.name] = definition
    ordered: dict[str, Definition] = {}
    for name in found:
        for ancestor in reversed(_lineage(found, name)):
            ordered[ancestor.name] = ancestor
    return ordered


def with_ancestors(definitions: Mapping[str, Definition], names: Iterable[str]) -> list[str]:
    """The named templates and all that they are layered on, parents first.

    Raises TemplateError if there is no such definition.
    """
    wanted: dict[str, None] = {}
    for name in names:
        if name not in definitions:
            known = ", ".join(definitions) or "none"
            raise TemplateError(f"there is no template definition {name!r}; defined are: {known}")
        for ancestor in reversed(_lineage(definitions, name)):
            wanted[ancestor.name] = None
    return list(wanted)


def definition_hash(definitions: Mapping[str, Definition], name: str, steps_source: bytes) -> str:
    """Hex digest that changes when the template, one it is layered on, or a step changes."""
    digest = hashlib.sha256(steps_source)
    for definition in _lineage(definitions, name):
        # A key that came later, and is not used, must not make an old build out of date.
        later = ("python_packages", "python_lock", "interpreter")
        fields = {k: v for k, v in asdict(definition).items() if v or k not in later}
        digest.update(json.dumps(fields, sort_keys=True).encode())
    return digest.hexdigest()


def _lineage(definitions: Mapping[str, Definition], name: str) -> list[Definition]:
    """The template and its ancestors, top first."""
    lineage: list[Definition] = []
    step: str | None = name
    while step is not None:
        if step not in definitions:
            raise TemplateError(
                f"template {lineage[-1].name!r}: 'from' names no template: {step!r}"
            )
        if any(step == seen.name for seen in lineage):
            raise TemplateError(f"template {name!r}: 'from' leads back to itself")
        lineage.append(definitions[step])
        step = definitions[step].parent
    return lineage


def _strings(table: Mapping[str, object], key: str, source: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TemplateError(f"{source}: {key!r} must be a list of strings, not {value!r}")
    return tuple(value)


def _tables(table: Mapping[str, object], key: str, source: str) -> list[dict[str, object]]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise TemplateError(f"{source}: {key!r} must be written as [[{key}]] tables")
    return value


def _optional(table: Mapping[str, object], key: str, source: str) -> str | None:
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        raise TemplateError(f"{source}: {key!r} must be a string, not {value!r}")
    return value


def _lock(table: Mapping[str, object], source: str, folder: Path) -> str | None:
    """The text of the file that `python_lock` names."""
    name = _optional(table, "python_lock", source)
    if (name is None) != (not table.get("python_packages")):
        raise TemplateError(
            f"{source}: 'python_packages' and 'python_lock' need each other; give both or neither"
        )
    if name is None:
        return None
    _require(_NAME, name, "python_lock", source, "the name of a file beside the definition")
    try:
        return (folder / name).read_text()
    except OSError as error:
        raise TemplateError(
            f"{source}: 'python_lock': {folder / name} cannot be read ({error.strerror}); "
            "write it with scripts/lock-python-packages.py"
        ) from error


def _require(pattern: re.Pattern[str], value: object, key: str, source: str, what: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise TemplateError(f"{source}: {key!r}: {value!r} is not {what}")


def _file(entry: Mapping[str, object], source: str) -> FileEntry:
    unknown = sorted(set(entry) - {"path", "content", "mode"})
    if unknown:
        raise TemplateError(f"{source}: 'files': unknown key {unknown[0]!r}")
    path, content, mode = entry.get("path"), entry.get("content"), entry.get("mode", "0644")
    if not isinstance(path, str) or not path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise TemplateError(f"{source}: 'files': path {path!r} must be absolute and without '..'")
    if not isinstance(content, str):
        raise TemplateError(f"{source}: 'files': content of {path} must be a string")
    _require(_MODE, mode, f"files: mode of {path}", source, 'an octal string such as "0644"')
    return FileEntry(path, content, int(str(mode), 8))
