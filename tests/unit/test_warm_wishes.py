"""How warm sandboxes are asked for."""

from __future__ import annotations

import pytest

from atoll.config import Settings, warm_wishes
from atoll.model.errors import InvalidRequest


def test_templates_with_tags_and_teams_are_named_as_in_a_create() -> None:
    assert warm_wishes(["a=2", "team/b:v1=1"]) == {"a": 2, "team/b:v1": 1}
    assert Settings.from_environ({"ATOLL_WARM": "a=2, b=0"}).warm == {"a": 2, "b": 0}


@pytest.mark.parametrize("text", ["a", "=1", "a=", "a=-1", "a=x", "a=12345"])
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequest, match="TEMPLATE=N"):
        warm_wishes([text])
