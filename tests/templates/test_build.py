"""Building: whole or not at all, once at a time, again only when something changed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandgate.templates import TemplateError, find, load
from sandgate.templates.build import build, build_lock, prune
from sandgate.templates.steps import STEPS
from sandgate.templates.store import templates_dir
from templates.tiny import CHILD, ROOT, Recorder, definitions

BROKEN = CHILD.replace('from = "root"', 'from = "root"\nsteps = ["nonsense"]')


def _build(data_dir: Path, name: str = "child", force: bool = False, **texts: str) -> list[str]:
    return build(data_dir, definitions(**texts), [name], Recorder(), force=force)


def _left_over(data_dir: Path) -> list[str]:
    return sorted(path.name for path in templates_dir(data_dir).iterdir())


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_a_layer_is_built_with_its_parent_and_holds_just_its_own_files(tmp_path: Path) -> None:
    assert _build(tmp_path) == ["root", "child"]
    templates = load(tmp_path)
    own, below = templates["child"].layers
    assert templates["root"].layers == (below,)
    assert (own / "etc/who").read_text() == "child"
    assert (below / "etc/who").read_text() == "root"
    assert not (own / "etc/secret").exists()
    assert (below / "etc/secret").stat().st_mode & 0o7777 == 0o600
    assert _left_over(tmp_path) == [".lock", "child", "root"]


def test_a_layer_and_the_way_to_it_can_be_entered_whatever_the_umask(
    tmp_path: Path, umask: None
) -> None:
    _build(tmp_path)
    for template in load(tmp_path).values():
        for layer in template.layers:
            for folder in (layer, layer.parent, layer.parent.parent):
                assert folder.stat().st_mode & 0o7777 == 0o755, folder
                assert folder.stat().st_uid == 0


def test_mount_points_are_there_and_empty(tmp_path: Path) -> None:
    _build(tmp_path, "root")
    (layer,) = load(tmp_path)["root"].layers
    for name in ("proc", "sys", "dev", "run", "tmp"):
        assert list((layer / name).iterdir()) == []
    assert (layer / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_a_template_is_found_by_name_and_alias(tmp_path: Path) -> None:
    _build(tmp_path)
    templates = load(tmp_path)
    assert find(templates, "kid") is templates["child"]
    assert find(templates, "root") is templates["root"]
    assert find(templates, "nobody") is None


def test_what_is_up_to_date_is_not_built_again(tmp_path: Path) -> None:
    _build(tmp_path)
    before = load(tmp_path)
    reporter = Recorder()
    assert build(tmp_path, definitions(), ["root", "child"], reporter) == []
    assert reporter.finished == {"root": "up to date", "child": "up to date"}
    assert load(tmp_path) == before


def test_force_builds_the_named_one_and_what_lies_on_it(tmp_path: Path) -> None:
    _build(tmp_path)
    assert _build(tmp_path, "child", force=True) == ["child"]
    assert _build(tmp_path, "root", force=True) == ["root", "child"]


def test_a_changed_definition_is_built_again_and_its_layers_too(tmp_path: Path) -> None:
    _build(tmp_path)
    changed = ROOT.replace("kept", "changed")
    assert _build(tmp_path, "root", root=changed, child=CHILD) == ["root", "child"]
    assert (load(tmp_path)["child"].layers[1] / "etc/secret").read_text() == "changed"


def test_a_replaced_build_stays_for_running_sandboxes_until_pruned(tmp_path: Path) -> None:
    _build(tmp_path, "root")
    (layer,) = load(tmp_path)["root"].layers
    held = os.open(layer, os.O_PATH | os.O_DIRECTORY)
    try:
        _build(tmp_path, "root", force=True)
        assert os.stat("etc/who", dir_fd=held).st_size == len("root")
        prune(tmp_path)
        with pytest.raises(FileNotFoundError):
            os.stat("etc/who", dir_fd=held)
    finally:
        os.close(held)
    assert _left_over(tmp_path) == [".lock", "root"]


@pytest.mark.parametrize("parent", [ROOT, ROOT.replace("kept", "changed")])
def test_a_failing_build_leaves_what_was_there_before(tmp_path: Path, parent: str) -> None:
    _build(tmp_path)
    before = load(tmp_path)
    with pytest.raises(TemplateError, match="no step 'nonsense'; steps are: "):
        _build(tmp_path, root=parent, child=BROKEN)
    assert load(tmp_path) == before
    assert _left_over(tmp_path) == [".lock", "child", "root"]
    assert _mounts_below(tmp_path) == []


def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_root: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sandgate.templates.steps.STEPS", {**STEPS, "nonsense": interrupt})
    with pytest.raises(KeyboardInterrupt):
        _build(tmp_path, root=ROOT, child=BROKEN)
    assert _left_over(tmp_path) == [".lock"]
    assert _mounts_below(tmp_path) == []


def test_what_a_killed_build_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    left = templates_dir(tmp_path) / ".build-root" / "rootfs"
    left.mkdir(parents=True)
    (left / "half").write_text("a file")
    _build(tmp_path, "root")
    assert _left_over(tmp_path) == [".lock", "root"]
    assert not (load(tmp_path)["root"].layers[0] / "half").exists()


def test_a_second_build_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    _build(tmp_path, "root")
    reporter, built = Recorder(), list[str]()
    thread = threading.Thread(
        target=lambda: built.extend(build(tmp_path, definitions(), ["child"], reporter))
    )
    with build_lock(tmp_path, Recorder()):
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert reporter.notes == ["waiting for another template build to end"]
        assert _left_over(tmp_path) == [".lock", "root"]
    thread.join(10)
    assert built == ["child"]


def _delete_parent(folder: Path) -> None:
    (folder / "root").rename(folder.parent / "gone")


def _replace_parent(folder: Path) -> None:
    path = folder / "root/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "build_id": "another"}))


def _delete_files(folder: Path) -> None:
    (folder / "child/rootfs").rename(folder.parent / "gone")


def _damage(folder: Path) -> None:
    (folder / "child/manifest.json").write_text('{"name": "chi')


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (_delete_parent, "a layer over a build of 'root' that is gone"),
        (_replace_parent, "a layer over a build of 'root' that is gone"),
        (_delete_files, "rootfs is missing"),
    ],
)
def test_a_template_that_is_not_whole_is_left_out_with_the_remedy(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[Path], None],
    complaint: str,
) -> None:
    _build(tmp_path)
    before = set(load(tmp_path))
    harm(templates_dir(tmp_path))
    assert set(load(tmp_path)) < before
    assert complaint in caplog.text
    assert "sandgate template build" in caplog.text


def test_a_damaged_manifest_is_refused_with_the_remedy(tmp_path: Path) -> None:
    _build(tmp_path)
    _damage(templates_dir(tmp_path))
    with pytest.raises(TemplateError, match=r"(?s)is damaged.*sandgate template build"):
        load(tmp_path)


def test_no_template_directory_means_no_template(tmp_path: Path) -> None:
    assert load(tmp_path) == {}
    prune(tmp_path)


def _mounts_below(folder: Path) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.startswith(str(folder))]
