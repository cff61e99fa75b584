from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sandgate.templates import TemplateError
from sandgate.templates.definition import (
    Definition,
    definition_hash,
    load_definitions,
    parse,
    with_ancestors,
)
from sandgate.templates.steps import STEPS
from templates.tiny import CHILD, ROOT, definitions


def test_the_shipped_definitions_are_base_and_the_code_interpreter_on_top_of_it() -> None:
    shipped = load_definitions()
    assert list(shipped) == ["base", "code-interpreter-v1"]
    assert shipped["base"].suite == "bookworm"
    assert shipped["code-interpreter-v1"].parent == "base"
    for definition in shipped.values():
        assert set(definition.steps) <= set(STEPS)


def test_the_lock_has_every_wanted_package_in_its_range_with_hashes() -> None:
    definition = load_definitions()["code-interpreter-v1"]
    assert definition.interpreter and definition.python_lock
    entries = definition.python_lock.replace(" \\\n", " ").splitlines()[1:]
    locked = {}
    for entry in entries:
        package, *hashes = entry.split()
        name, _, version = package.partition("==")
        assert hashes and all(text.startswith("--hash=sha256:") for text in hashes), entry
        locked[canonicalize_name(name)] = version
    for wanted in map(Requirement, definition.python_packages):
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), wanted


def test_a_key_that_is_not_used_leaves_older_builds_up_to_date() -> None:
    """Made of the fields that there were before those for Python packages."""
    known = definitions(root='name = "root"')
    plain = definition_hash(known, "root", b"")
    assert plain == "3bc64795b98c22bff1670e13097fd657cdede1d24dc7347373a04f9b920196fd"


def test_files_have_the_mode_they_ask_for_and_0644_otherwise() -> None:
    modes = {entry.path: entry.mode for entry in parse(ROOT, "root").files}
    assert modes == {"/etc/who": 0o644, "/etc/secret": 0o600}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name = ", "not valid TOML"),
        ('suite = "bookworm"', "'name' is missing"),
        ('name = "Base"', "'name': 'Base' is not"),
        ('name = "../up"', "'name': '../up' is not"),
        ("name = 5", "'name': 5 is not"),
        ('name = "a"\ncolour = 1', "unknown key 'colour'"),
        ('name = "a"\naliases = ["B C"]', "'B C' is not"),
        ('name = "a"\nsuite = "bookworm"\nfrom = "b"', "exclude each other"),
        ('name = "a"\nsuite = "bookworm --hook"', "is not the name of a Debian release"),
        ('name = "a"\npackages = ["jq"]', "need a 'suite' or a 'from'"),
        ('name = "a"\nfrom = "b"\napt_options = ["x"]', "need a 'suite'"),
        ('name = "a"\nfrom = "b"\npackages = ["-o=evil"]', "'-o=evil' is not a Debian package"),
        ('name = "a"\nfrom = "b"\npackages = "jq"', "must be a list of strings"),
        ('name = "a"\nfrom = "b"\npython_packages = ["x"]', "need each other"),
        ('name = "a"\nfrom = "b"\npython_lock = "x"', "need each other"),
        ('name = "a"\npython_packages = ["x"]\npython_lock = "../x"', "the name of a file"),
        ('name = "a"\npython_packages = ["x"]\npython_lock = "none.lock"', "cannot be read"),
        ('name = "a"\ninterpreter = 1', "must be true or false, not 1"),
        ('name = "a"\nfrom = 1', "'from' must be a string, not 1"),
        ('name = "a"\nfiles = ["x"]', "written as [[files]]"),
        ('name = "a"\n[[files]]\npath = "etc/x"\ncontent = ""', "must be absolute"),
        ('name = "a"\n[[files]]\npath = "/../x"\ncontent = ""', "without '..'"),
        ('name = "a"\n[[files]]\npath = "/x"', "content of /x must be a string"),
        ('name = "a"\n[[files]]\npath = "/x"\ncontent = ""\nmode = "rw"', "octal string"),
        ('name = "a"\n[[files]]\npath = "/x"\ncontent = ""\nowner = "me"', "unknown key 'owner'"),
    ],
)
def test_a_wrong_definition_is_refused_with_file_and_key(text: str, complaint: str) -> None:
    with pytest.raises(TemplateError) as caught:
        parse(text, "some.toml")
    assert str(caught.value).startswith("some.toml: ")
    assert complaint in str(caught.value)


def test_parents_come_before_children_whatever_the_file_names(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(CHILD)
    (tmp_path / "z.toml").write_text(ROOT)
    assert list(load_definitions(tmp_path)) == ["root", "child"]


def test_two_files_with_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(ROOT)
    (tmp_path / "b.toml").write_text(ROOT)
    with pytest.raises(TemplateError, match="'root' exists already"):
        load_definitions(tmp_path)


@pytest.mark.parametrize(
    ("parent", "complaint"), [("nobody", "names no template: 'nobody'"), ("a", "back to itself")]
)
def test_a_parent_that_leads_nowhere_is_refused(
    tmp_path: Path, parent: str, complaint: str
) -> None:
    (tmp_path / "a.toml").write_text(f'name = "a"\nfrom = "{parent}"')
    with pytest.raises(TemplateError, match=complaint):
        load_definitions(tmp_path)


def test_asking_for_a_layer_asks_for_what_it_lies_on() -> None:
    assert with_ancestors(definitions(), ["child"]) == ["root", "child"]
    with pytest.raises(TemplateError, match="no template definition 'x'; defined are: root, child"):
        with_ancestors(definitions(), ["x"])


def _hash(found: dict[str, Definition], name: str, steps: bytes = b"") -> str:
    return definition_hash(found, name, steps)


def test_a_changed_parent_or_step_changes_the_hash_of_a_layer() -> None:
    before = definitions()
    after = definitions(root=ROOT.replace("kept", "changed"), child=CHILD)
    assert _hash(before, "child") == _hash(definitions(), "child")
    assert _hash(before, "child") != _hash(after, "child")
    assert _hash(before, "child") != _hash(before, "child", b"changed")


def test_a_changed_layer_leaves_the_hash_of_its_parent_alone() -> None:
    before = definitions()
    after = definitions(root=ROOT, child=CHILD.replace('"child"\n[[', '"child"\n#\n[['))
    changed = definitions(root=ROOT, child=CHILD.replace("kid", "kitten"))
    assert _hash(before, "root") == _hash(changed, "root")
    assert _hash(before, "child") != _hash(changed, "child")
    assert _hash(before, "child") == _hash(after, "child"), "a comment is no change"
