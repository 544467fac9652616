"""Names, tags and steps of template builds: what is refused, what is expanded, what makes another layer."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.control.templates.names import Reference, check_tag, parse_reference, slug, tags_of_request
from atoll.control.templates.steps import (
    Settings,
    Step,
    after,
    base_key,
    check_steps,
    command,
    describe,
    expand,
    layer_key,
)
from atoll.model.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("mine", Reference("mine")),
        (" Mine:V1.0 ", Reference("mine", None, "v1.0")),
        ("team/mine", Reference("mine", "team")),
        ("team/mine:x", Reference("mine", "team", "x")),
    ],
)
def test_a_reference_is_read_as_e2b_reads_it(text: str, found: Reference) -> None:
    assert parse_reference(text) == found


@pytest.mark.parametrize(
    "text",
    ["", ":", "a:", "/a", "a/", "a b", "a/b/c", "a:b:c", "ä", "a:2022ca68-83f1-47ee-842f-a49161d6cb11", "a" * 400],
)
def test_a_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_reference(text)


@given(st.text(max_size=50))
def test_what_is_read_is_read_the_same_again(text: str) -> None:
    try:
        first = parse_reference(text)
    except InvalidRequest:
        return
    again = f"{first.namespace}/" if first.namespace else ""
    assert parse_reference(f"{again}{first.name}{':' + first.tag if first.tag else ''}") == first


def test_tags_of_a_request_are_each_once_and_never_none() -> None:
    assert tags_of_request(parse_reference("a:V1"), ["v1", "X", "x"]) == ("v1", "x")
    assert tags_of_request(parse_reference("a"), []) == ("default",)
    with pytest.raises(InvalidRequest, match="form of a build's id"):
        check_tag(str(uuid4()))


def test_a_slug_is_always_a_namespace() -> None:
    assert slug("My Team, Ltd.") == "my-team-ltd"
    assert slug("öä") == "team"


ROOT = Settings("root", "/srv", {"A": "1"})


def test_env_expands_names_and_nothing_else() -> None:
    assert expand("$A ${A}x $B $(id) `id` '$A' $$ $1", ROOT) == "1 1x  $(id) `id` '1' $$ $1"
    assert expand("$HOME $USER", ROOT) == "/root root"
    assert after(Step("ENV", ("B", "$A", "C", "$B")), ROOT).env == {"A": "1", "B": "1", "C": ""}
    assert command(Step("ENV", ("B", "x")), ROOT) is None


def test_workdir_is_relative_to_the_last_one_else_to_the_root() -> None:
    assert after(Step("WORKDIR", ("in/x",)), ROOT).workdir == "/srv/in/x"
    assert after(Step("WORKDIR", ("../x",)), ROOT).workdir == "/x"
    assert after(Step("WORKDIR", ("x",)), Settings()).workdir == "/x"


def test_a_copy_goes_to_the_working_directory_else_to_the_home() -> None:
    step = Step("COPY", ("a", "there/"), files_hash="0" * 64)

    def target(settings: Settings) -> Sequence[str]:
        made = command(step, settings)
        assert made is not None
        return made.argv[4:]

    assert target(ROOT) == ("a", "/srv/there/", "root:root", "")
    assert target(Settings()) == ("a", "/home/user/there/", "user:user", "")


@pytest.mark.parametrize(
    "step",
    [
        Step("FLY", ("x",)),
        Step("RUN", ()),
        Step("RUN", ("a", "b", "c")),
        Step("RUN", ("a\0b",)),
        Step("RUN", ("x" * 300_000,)),
        Step("RUN", ("x", "-u root")),
        Step("ENV", ("A", "1", "B")),
        Step("ENV", ("A", "1", "ATOLL_GPU", "some")),
        Step("ENV", ("1A", "1")),
        Step("USER", ("a b",)),
        Step("USER", ("-r",)),
        Step("COPY", ("a", "/b")),
        Step("COPY", ("/a", "/b"), files_hash="0" * 64),
        Step("COPY", ("a/../../b", "/b"), files_hash="0" * 64),
        Step("COPY", ("a", "/b", "u;id"), files_hash="0" * 64),
        Step("COPY", ("a", "/b", "", "u+s"), files_hash="0" * 64),
    ],
)
def test_a_malformed_step_is_refused_by_its_number(step: Step) -> None:
    with pytest.raises(InvalidRequest, match="step 2"):
        check_steps([Step("RUN", ("true",)), step])


def test_anything_that_could_make_another_layer_makes_another_key() -> None:
    base = base_key("team", "base 1")
    step = Step("COPY", ("a", "/b"), files_hash="0" * 64)
    keys = {
        layer_key(base, step, Settings()),
        layer_key(base_key("other team", "base 1"), step, Settings()),
        layer_key(base_key("team", "base 2"), step, Settings()),
        layer_key(base, Step("COPY", ("a", "/c"), files_hash="0" * 64), Settings()),
        layer_key(base, Step("COPY", ("a", "/b"), files_hash="1" * 64), Settings()),
        layer_key(base, step, Settings("root")),
        layer_key(base, step, Settings(workdir="/x")),
        layer_key(base, step, Settings(env={"A": "1"})),
    }
    assert len(keys) == 8
    assert layer_key(base, step, Settings()) == layer_key(
        base, Step(*("COPY", ("a", "/b"), True, "0" * 64)), Settings()
    )


def test_a_description_is_one_short_line() -> None:
    assert describe(Step("RUN", ("one\ntwo",))) == "RUN one …"
    assert len(describe(Step("RUN", ("x" * 5000,)))) < 400
