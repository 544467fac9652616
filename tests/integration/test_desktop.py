"""The template `desktop` by the published package e2b-desktop, which knows no other name or path than E2B's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from test_clients import found_by

from atoll.images.store import TemplateStore
from atoll.model.errors import BackendUnavailable, BuildFailed, TemplateNotFound

WANTED = "ATOLL_TEST_DESKTOP"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def desktop_template(templates_dir: Path) -> None:
    """Not built unless it is asked for: 350 packages of Debian, minutes."""
    store = TemplateStore(templates_dir)
    try:
        if os.environ.get(WANTED):
            store.ensure_template("desktop")
        else:
            store.find_template("desktop")
    except TemplateNotFound:
        pytest.skip(f"the template `desktop` has not been built here; {WANTED}=1 builds it")
    except (BuildFailed, BackendUnavailable) as error:
        pytest.skip(f"the template `desktop` cannot be built here: {error}")


def test_the_calls_of_the_package_work_unchanged(server: Any, desktop_template: None, tmp_path: Path) -> None:
    found = found_by("desktop", "desktop", server.environ, tmp_path)
    assert found["size"] == [800, 600]
    assert found["mouse"] == [[100, 200], [300, 500]]
    assert found["saved"].rstrip("\n") == "typed = 'Hello, world!'"
    assert "index.js" in found["title"]
    assert found["current"]
    assert found["picture"] == ["PNG", 800, 600, True]
    assert "/vnc.html?autoconnect=true&resize=scale&password=" in found["url"]
    assert int(found["page"]) > 0
    assert found["browsers"] >= 1
