"""The template store: what is never shown, what is built once, what survives. Builds here write one small file."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.images.recipes.build import Workplace
from atoll.images.recipes.recipe import OnProgress, Progress, Recipe
from atoll.images.store import TemplateStore
from atoll.model.errors import BuildFailed, TemplateNotFound
from atoll.model.sandbox import Limits
from atoll.model.template import Template


class Builder:
    """Counts builds; `before_end` runs when everything is written but nothing is renamed yet."""

    def __init__(self) -> None:
        self.built: list[tuple[str, tuple[Path, ...]]] = []
        self.before_end: Callable[[Workplace], None] = lambda place: None

    def __call__(self, recipe: Recipe, parents: tuple[Path, ...], place: Workplace, on_progress: OnProgress) -> None:
        self.built.append((recipe.name, parents))
        on_progress(Progress(recipe.name, "work", 0.5, "half"))
        place.layer.mkdir()
        (place.layer / "made-by").write_text(recipe.name)
        self.before_end(place)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.sh"
    path.write_text("true\n")
    return path


@pytest.fixture
def recipes(script: Path) -> dict[str, Recipe]:
    bottom = Recipe("bottom", "a tree", str(script), limits=Limits(memory_mib=512))
    top = Recipe(
        "top", "a layer", str(script), parent="bottom", names=("alias",), interpreter=True, env_vars={"A": "1"}
    )
    return {"bottom": bottom, "top": top}


@pytest.fixture
def builder() -> Builder:
    return Builder()


@pytest.fixture
def store(tmp_path: Path, recipes: dict[str, Recipe], builder: Builder) -> TemplateStore:
    return TemplateStore(tmp_path / "templates", recipes, build=builder)


def leftovers(store_dir: Path) -> list[str]:
    return [str(path.relative_to(store_dir)) for path in (store_dir / ".building").iterdir()]


def test_an_empty_or_absent_directory_has_no_templates(store: TemplateStore) -> None:
    assert store.list_templates() == []


def test_a_missing_template_is_built_with_its_parents_first(store: TemplateStore, builder: Builder) -> None:
    template = store.ensure_template("top")
    assert [name for name, _ in builder.built] == ["bottom", "top"]
    bottom = store.find_template("bottom")
    assert builder.built[1][1] == bottom.layers
    assert template.layers[1:] == bottom.layers, "layers are told top first"
    assert [(layer / "made-by").read_text() for layer in template.layers] == ["top", "bottom"]


def test_the_record_says_what_the_recipe_says(store: TemplateStore) -> None:
    built = store.ensure_template("top")
    read = store.find_template("alias")
    assert read == built
    assert (read.template_id, read.names, read.interpreter, dict(read.env_vars)) == (
        "top",
        ("alias",),
        True,
        {"A": "1"},
    )
    assert store.find_template("bottom").limits.memory_mib == 512


def test_a_recipe_may_give_up_every_way_to_more_rights(tmp_path: Path, recipes: dict[str, Recipe]) -> None:
    def template(**changed: Recipe) -> Template:
        store = TemplateStore(tmp_path / "templates", recipes | changed, build=Builder())
        return store.ensure_template("bottom")

    usual = template()
    strict = template(bottom=replace(recipes["bottom"], no_new_privileges=True))
    assert (usual.no_new_privileges, strict.no_new_privileges) == (False, True)
    assert strict.build_id != usual.build_id


def test_what_is_there_is_not_built_again(store: TemplateStore, builder: Builder) -> None:
    assert not store.is_current("top")
    first = store.ensure_template("top")
    assert store.is_current("top")
    assert store.ensure_template("top") == first
    assert len(builder.built) == 2


def test_a_failed_build_leaves_nothing_and_the_next_one_works(
    store: TemplateStore, builder: Builder, tmp_path: Path
) -> None:
    def fail(place: Workplace) -> None:
        raise BuildFailed("boom")

    builder.before_end = fail
    with pytest.raises(BuildFailed, match="boom"):
        store.ensure_template("bottom")
    assert leftovers(tmp_path / "templates") == []
    assert store.list_templates() == []
    builder.before_end = lambda place: None
    assert store.ensure_template("bottom").template_id == "bottom"


def test_a_build_that_cannot_write_says_where_the_log_is(store: TemplateStore, builder: Builder) -> None:
    def fail(place: Workplace) -> None:
        raise OSError(28, "No space left on device")

    builder.before_end = fail
    with pytest.raises(BuildFailed, match=r"No space left.*\.logs/bottom-"):
        store.ensure_template("bottom")


def test_a_build_under_way_is_not_listed(store: TemplateStore, builder: Builder) -> None:
    seen: list[int] = []
    builder.before_end = lambda place: seen.append(len(store.list_templates()))
    store.ensure_template("bottom")
    assert seen == [0]


def test_what_a_cut_off_build_left_is_removed_by_the_next(store: TemplateStore, tmp_path: Path) -> None:
    rest = tmp_path / "templates" / ".building" / "bottom-0123456789abcdef" / "layer"
    rest.mkdir(parents=True)
    of_another = tmp_path / "templates" / ".building" / "bottom-two-0123456789abcdef"
    of_another.mkdir()
    store.ensure_template("bottom")
    assert leftovers(tmp_path / "templates") == [".building/bottom-two-0123456789abcdef"]


def test_two_that_want_the_same_template_at_once_build_it_once(
    tmp_path: Path, recipes: dict[str, Recipe], builder: Builder
) -> None:
    builder.before_end = lambda place: time.sleep(0.2)
    stores = [TemplateStore(tmp_path / "templates", recipes, build=builder) for _ in range(4)]
    found: list[str] = []
    threads = [threading.Thread(target=lambda s=s: found.append(s.ensure_template("bottom").build_id)) for s in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(builder.built) == 1
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_changed_recipe_is_built_anew_and_the_old_build_stays_for_who_stands_on_it(
    tmp_path: Path, recipes: dict[str, Recipe], builder: Builder, store: TemplateStore
) -> None:
    old = store.ensure_template("top")
    changed = {**recipes, "bottom": replace(recipes["bottom"], apt_packages=("more",))}
    newer = TemplateStore(tmp_path / "templates", changed, build=builder)
    assert not newer.is_current("top"), "a child is out of date when its parent is"
    new = newer.ensure_template("top")
    assert set(new.layers).isdisjoint(old.layers)
    assert all(layer.is_dir() for layer in old.layers)
    assert store.find_template("top") == new


def _supersede(tmp_path: Path, recipes: dict[str, Recipe], builder: Builder) -> TemplateStore:
    changed = {**recipes, "bottom": replace(recipes["bottom"], apt_packages=("more",))}
    newer = TemplateStore(tmp_path / "templates", changed, build=builder)
    newer.ensure_template("top")
    return newer


def _holder(tmp_path: Path, name: str = "server") -> TemplateStore:
    (tmp_path / name).mkdir(exist_ok=True)
    return TemplateStore(tmp_path / "templates", holder=tmp_path / name)


def test_superseded_builds_are_removed_and_those_that_a_server_holds_kept(
    tmp_path: Path, recipes: dict[str, Recipe], builder: Builder, store: TemplateStore
) -> None:
    old = store.ensure_template("top")
    assert _holder(tmp_path).hold(old.layers)
    newer = _supersede(tmp_path, recipes, builder)
    assert newer.remove_unused_builds() == 0
    assert _holder(tmp_path, "another").hold(newer.find_template("top").layers)
    # The server is started again: sandboxes that it finds alive stand there still, and without any nothing is held.
    assert newer.remove_unused_builds() == 0
    _holder(tmp_path).hold_nothing()
    assert newer.remove_unused_builds() == 2
    assert not any(layer.exists() for layer in old.layers)
    assert all(layer.is_dir() for layer in newer.find_template("top").layers)
    assert list((tmp_path / "templates" / ".building").iterdir()) == []
    assert newer.remove_unused_builds() == 0


def test_a_server_whose_data_is_gone_holds_nothing(
    tmp_path: Path, recipes: dict[str, Recipe], builder: Builder, store: TemplateStore
) -> None:
    assert _holder(tmp_path).hold(store.ensure_template("top").layers)
    newer = _supersede(tmp_path, recipes, builder)
    (tmp_path / "server").rmdir()
    assert newer.remove_unused_builds() == 2


def test_what_was_taken_away_a_moment_ago_cannot_be_held(
    tmp_path: Path, recipes: dict[str, Recipe], builder: Builder, store: TemplateStore
) -> None:
    old = store.ensure_template("top")
    newer = _supersede(tmp_path, recipes, builder)
    assert newer.remove_unused_builds() == 2
    holder = _holder(tmp_path)
    assert not holder.hold(old.layers)
    assert holder.hold(newer.find_template("top").layers)


def test_a_template_that_is_being_built_is_left_alone(
    tmp_path: Path, recipes: dict[str, Recipe], builder: Builder, store: TemplateStore
) -> None:
    store.ensure_template("top")
    newer = _supersede(tmp_path, recipes, builder)
    with (tmp_path / "templates" / ".locks" / "top").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert newer.remove_unused_builds() == 1  # that of `bottom`
    assert newer.remove_unused_builds() == 1


def test_builds_of_a_template_whose_record_is_damaged_are_left_alone(tmp_path: Path, store: TemplateStore) -> None:
    layers = store.ensure_template("top").layers
    (tmp_path / "templates" / "top" / "template.json").write_text("{")
    (tmp_path / "templates" / "bottom" / "template.json").write_text("{")
    assert store.remove_unused_builds() == 0
    assert all(layer.is_dir() for layer in layers)


def test_a_lent_directory_of_templates_costs_no_sandbox(tmp_path: Path) -> None:
    layer = tmp_path / "templates" / "base" / "builds" / "x"
    layer.mkdir(parents=True)
    (tmp_path / "templates" / ".in-use").write_text("nobody writes here")
    assert _holder(tmp_path).hold([layer])


@pytest.mark.parametrize("record", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 99}'])
def test_a_damaged_record_hides_its_template_alone(store: TemplateStore, tmp_path: Path, record: str) -> None:
    store.ensure_template("top")
    (tmp_path / "templates" / "top" / "template.json").write_text(record)
    assert [template.template_id for template in store.list_templates()] == ["bottom"]
    assert store.ensure_template("top").template_id == "top"


def test_a_template_without_one_of_its_layers_is_not_usable(store: TemplateStore, tmp_path: Path) -> None:
    layers = store.ensure_template("top").layers
    layers[1].rename(tmp_path / "gone")
    assert store.list_templates() == []


def test_unknown_names_are_refused_with_the_known_ones(store: TemplateStore) -> None:
    for call in (store.find_template, store.ensure_template):
        with pytest.raises(TemplateNotFound, match="bottom, top"):
            call("nope")


def test_a_name_never_leads_out_of_the_directory(store: TemplateStore) -> None:
    store.ensure_template("bottom")
    for name in ("../templates/bottom", "bottom/builds", ".building", "", "."):
        with pytest.raises(TemplateNotFound):
            store.find_template(name)


def test_records_hold_relative_paths_so_that_the_directory_can_move(store: TemplateStore, tmp_path: Path) -> None:
    store.ensure_template("top")
    record = json.loads((tmp_path / "templates" / "top" / "template.json").read_text())
    assert not any(Path(layer).is_absolute() for layer in record["layers"])
    (tmp_path / "templates").rename(tmp_path / "moved")
    assert TemplateStore(tmp_path / "moved").find_template("top").layers[0].is_relative_to(tmp_path / "moved")
