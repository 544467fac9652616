"""What the documents say of state names tests that exist, row by row; and boundaries that have no test elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from atoll.images.layers import ImageLayers
from atoll.isolation import directory
from atoll.isolation.gvisor import saved
from atoll.model.errors import MemoryLost, TemplateNotFound
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import SandboxState

ROOT = Path(__file__).parents[2]
TESTS = {
    name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
}


def _rows(document: str, first: str) -> list[str]:
    """Of the table whose head begins so."""
    lines = (ROOT / "docs" / document).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(first))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append(line)
    return found


@pytest.mark.parametrize(
    ("document", "first"),
    [("durability.md", "| | front or launcher killed"), ("compatibility-of-state.md", "| boundary |")],
)
def test_every_row_names_a_test_that_there_is(document: str, first: str) -> None:
    rows = _rows(document, first)
    assert len(rows) > 5
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, f"no test checks: {row}"
        assert set(named) <= TESTS, f"{set(named) - TESTS} do not exist: {row}"


def test_memory_of_another_runsc_is_not_used(tmp_path: Path) -> None:
    mine, runtimes = saved.Engine("release-1", "systrap", "files"), tmp_path / "runtimes"
    (runtimes / "files").mkdir(parents=True)
    place = tmp_path / "memory"
    place.mkdir()
    (place / "pages.img").write_bytes(b"pages")
    saved.write(place, mine)
    assert saved.find(place, mine, runtimes).engine == mine
    for other in (saved.Engine("release-2", "systrap", "files"), saved.Engine("release-1", "kvm", "files")):
        with pytest.raises(MemoryLost, match="cannot be read by"):
            saved.find(place, other, runtimes)
    facts = json.loads((place / "image.json").read_text())
    (place / "image.json").write_text(json.dumps(facts | {"version": 99}))
    with pytest.raises(MemoryLost, match="another Atoll"):
        saved.find(place, mine, runtimes)


def test_an_image_of_another_format_is_not_found(tmp_path: Path) -> None:
    images, image_id = ImageLayers(tmp_path), "a" * 40
    place = tmp_path / ".images" / image_id
    (place / "layer").mkdir(parents=True)
    record = {"format": 1, "data_dir": "", "layers": [f".images/{image_id}/layer"]}
    (place / "image.json").write_text(json.dumps(record))
    assert images.find(image_id) == (place / "layer",)
    (place / "image.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(TemplateNotFound):
        images.find(image_id)
    (place / "image.json").write_text(json.dumps(record | {"layers": [f".images/{image_id}/gone"]}))
    with pytest.raises(TemplateNotFound):
        images.find(image_id)
    assert place.is_dir(), "nothing is removed by guess"


def test_what_version_1_wrote_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    place = tmp_path / "i0001"
    place.mkdir()
    body = {
        "version": 1,
        "sandbox_id": "i0001",
        "template_id": "base",
        "tier": "namespaces",
        "handle": {"pid": 7, "limits": {"cpu_count": 1, "memory_mib": 256, "disk_mib": 1024, "pids": 100}},
        "envd_access_token": "t",
        "traffic_access_token": None,
        "mask_request_host": None,
        "network": NetworkPolicy().as_json(),
    }
    (place / "record.json").write_text(json.dumps(body))
    found = directory.read(place)
    assert isinstance(found, directory.Recorded)
    assert (found.version, found.state.state, found.spec.limits.memory_mib) == (1, SandboxState.RUNNING, 256)
    assert found.layers == (), "so it cannot be paused"
