"""What template builds keep on disk: uploads, logs, images."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from atoll.control.templates import build_log, uploads
from atoll.control.templates.build_log import BuildLogs
from atoll.control.templates.uploads import Uploads
from atoll.images import layers
from atoll.images.layers import ImageLayers
from atoll.images.leases import Leases
from atoll.isolation.base import Captured
from atoll.isolation.linux.disk.written import keep_written
from atoll.model.errors import Forbidden, InvalidRequest, QuotaExceeded, TemplateNotFound

HASH = "ab" * 32
BUILD = "00000000-0000-4000-8000-000000000001"


def _files(directory: Path) -> list[str]:
    found = (path for path in directory.rglob("*") if path.is_symlink() or path.is_file())
    return sorted(str(path.relative_to(directory)) for path in found)


async def _pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_an_upload_is_there_once_it_is_whole(tmp_path: Path) -> None:
    kept = Uploads(tmp_path)
    link = kept.link("team", HASH)
    assert kept.find("team", HASH) is None
    await kept.receive(link, _pieces(b"one", b"two"))
    found = kept.find("team", HASH)
    assert found is not None
    assert found.read_bytes() == b"onetwo"
    assert kept.find("other", HASH) is None


async def test_an_upload_that_breaks_off_or_is_too_large_leaves_nothing(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"begun"
        raise ConnectionError

    kept = Uploads(tmp_path, max_bytes=10)
    with pytest.raises(ConnectionError):
        await kept.receive(kept.link("team", HASH), broken())
    with pytest.raises(InvalidRequest, match="larger"):
        await kept.receive(kept.link("team", HASH), _pieces(b"x" * 6, b"x" * 6))
    assert not _files(tmp_path)


async def test_an_upload_never_takes_the_last_of_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "LEAST_FREE", 1.0)
    kept = Uploads(tmp_path)
    with pytest.raises(QuotaExceeded, match="nearly full"):
        await kept.receive(kept.link("team", HASH), _pieces(b"x"))
    assert not _files(tmp_path)


async def test_a_teams_uploads_have_a_sum_and_another_team_does_not_notice(tmp_path: Path) -> None:
    kept, other = Uploads(tmp_path, max_team_bytes=10), "cd" * 32
    await kept.receive(kept.link("team", HASH), _pieces(b"x" * 6))
    with pytest.raises(QuotaExceeded, match="the team's uploads"):
        await kept.receive(kept.link("team", other), _pieces(b"x" * 3, b"x" * 3))

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * 3
        with pytest.raises(QuotaExceeded):  # those that arrive at the same time count too
            await kept.receive(kept.link("team", "ef" * 32), _pieces(b"x" * 2))

    await kept.receive(kept.link("team", other), slow())
    await kept.receive(kept.link("neighbour", HASH), _pieces(b"x" * 10))


async def test_a_link_that_is_not_ours_or_old_stores_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Uploads(tmp_path)
    link = kept.link("team", HASH)
    for wrong in (
        link[:-1],
        link.replace("team", "other"),
        link.replace(HASH, "cd" * 32),
        uploads.PREFIX,
        link + "ä",
        Uploads(tmp_path).link("team", HASH),
    ):
        with pytest.raises(Forbidden):
            await kept.receive(wrong, _pieces(b"x"))
    monkeypatch.setattr(uploads, "LINK_S", -1.0)
    with pytest.raises(Forbidden, match="expired"):
        await kept.receive(kept.link("team", HASH), _pieces(b"x"))
    assert kept.find("team", HASH) is None


async def test_uploads_that_nobody_used_for_long_are_removed(tmp_path: Path) -> None:
    kept = Uploads(tmp_path)
    for team in ("old", "new"):
        await kept.receive(kept.link(team, HASH), _pieces(b"x"))
    long_ago = time.time() - uploads.KEPT_S - 60
    os.utime(tmp_path / "old" / HASH, (long_ago, long_ago))
    assert kept.sweep() == 1
    assert kept.find("new", HASH) is not None


def _now() -> datetime:
    return datetime(2030, 1, 1, tzinfo=UTC)


def test_output_becomes_lines_and_pages(tmp_path: Path) -> None:
    logs = BuildLogs(tmp_path, _now)
    log = logs.open(BUILD)
    log.step = "1"
    output = log.output()
    output.take("gr\xfc\xdf".encode()[:3], False)
    output.take("gr\xfc\xdf".encode()[3:] + b"e\npart", False)
    output.take(b"oops\r\n50%\r100%\n", True)
    output.end()
    log.write("hidden", level="debug")
    log.close()
    told = [(entry.level, entry.message, entry.step) for entry in logs.read(BUILD, level="info")]
    assert told == [
        ("info", "gr\xfc\xdfe", "1"),
        ("warn", "oops", "1"),
        ("warn", "50%", "1"),
        ("warn", "100%", "1"),
        ("info", "part", "1"),
    ]
    assert [entry.message for entry in logs.read(BUILD, 1, 2, "info")] == ["oops", "50%"]
    assert logs.read(BUILD, level="debug")[-1].message == "hidden"
    with pytest.raises(ValueError, match="no build's id"):
        logs.read("../x")


def test_a_build_that_floods_its_log_is_told_that_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_log, "MAX_ENTRIES", 10)
    logs = BuildLogs(tmp_path, _now)
    log = logs.open(BUILD)
    output = log.output()
    output.take(b"x" * 100_000, False)  # one line without an end is cut
    for number in range(50):
        output.take(f"{number}\n".encode(), False)
    log.close()
    found = logs.read(BUILD)
    assert len(found) == 11
    assert "full" in found[-1].message
    assert len(found[0].message) == build_log.MAX_LINE


IMAGE, OTHER = "1" * 40, "2" * 40


def test_an_image_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    images = ImageLayers(tmp_path)
    base = tmp_path / "base" / "builds" / "b"
    base.mkdir(parents=True)
    with pytest.raises(FileNotFoundError), images.capturing(IMAGE, [base], "fake") as capture:
        (capture.target / "missing" / "half").touch()
    assert not images.has(IMAGE)
    with images.capturing(IMAGE, [base], "fake", durable=False) as capture:
        capture.put(_layer_of_one_file(capture.target))
    found = images.find(IMAGE)
    assert found[1:] == (base,)
    assert (found[0] / "file").exists()
    marker = tmp_path / ".images" / IMAGE / "unsettled"
    assert marker.exists()
    images.settle(found)
    assert not marker.exists()
    with images.capturing(OTHER, found, "fake") as capture:
        capture.put(Captured(None))  # changed nothing: no layer of its own
    assert images.find(OTHER) == found
    assert list((tmp_path / ".building").iterdir()) == []
    for wrong in ("../x", "", "x" * 40):
        with pytest.raises(TemplateNotFound):
            images.find(wrong)
        with pytest.raises(ValueError, match="no image's id"), images.capturing(wrong, [base], "fake"):
            pass


def _layer_of_one_file(target: Path) -> Captured:
    layer = target / "layer"
    layer.mkdir()
    (layer / "file").touch()
    return Captured(layer)


def test_images_that_nothing_needs_are_removed_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, elsewhere = tmp_path / "data", tmp_path / "other-data"
    holder.mkdir()
    elsewhere.mkdir()
    templates = tmp_path / "templates"
    images, others = ImageLayers(templates, holder), ImageLayers(templates, elsewhere)

    def make(made_by: ImageLayers, number: int, below: tuple[Path, ...] = ()) -> tuple[Path, ...]:
        with made_by.capturing(f"{number:040x}", below, "fake") as capture:
            capture.put(_layer_of_one_file(capture.target))
        return made_by.find(f"{number:040x}")

    first = make(images, 1)
    make(images, 2, first)
    make(images, 3)
    held = make(images, 4)
    make(others, 5)
    lent = make(others, 6)
    assert Leases(templates, holder).hold(lent)
    assert images.keep(["0" * 39 + "2"]) == 0  # all are new
    monkeypatch.setattr(layers, "KEPT_S", -1.0)
    assert images.keep(["0" * 39 + "2"], held) == 1
    assert [images.has(f"{number:040x}") for number in range(1, 7)] == [True, True, False, True, True, True]
    elsewhere.rmdir()
    assert images.keep(["0" * 39 + "2"], held) == 1


def test_a_long_chain_becomes_one_layer_and_a_failure_leaves_the_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, templates = tmp_path / "data", tmp_path / "templates"
    base = templates / "base" / "builds" / "b"
    base.mkdir(parents=True)
    holder.mkdir()
    images, stack = ImageLayers(templates, holder), (base,)
    names = [f"{number:040x}" for number in range(layers.FOLD_ABOVE + 1)]
    for name in names:
        with images.capturing(name, stack, "fake") as capture:
            capture.put(_layer_of_one_file(capture.target))
        stack = images.find(name)
    assert images.chain(names[-2]) is None
    chain = images.chain(names[-1])
    assert chain is not None
    assert (len(chain[0]), list(chain[1])) == (layers.FOLD_ABOVE + 1, [base])
    with pytest.raises(OSError, match="full"), images.folding(names[-1], chain[1]) as capture:
        raise OSError("the disk is full")
    assert images.find(names[-1]) == stack
    with images.folding(names[-1], chain[1]) as capture:
        capture.put(_layer_of_one_file(capture.target))
    folded = images.find(names[-1])
    assert (len(folded), folded[1]) == (2, base)
    assert list((templates / ".building").iterdir()) == []
    # What a sandbox still stands on stays; then it goes, with the images that nothing else needs.
    monkeypatch.setattr(layers, "KEPT_S", -1.0)
    assert images.keep([names[-1]], stack) == 0
    assert all(layer.exists() for layer in stack)
    images.keep([names[-1]])
    assert [layer.exists() for layer in stack] == [False] * len(names) + [True]
    assert images.find(names[-1]) == folded


def test_what_belongs_to_one_sandbox_is_not_copied_out_of_it(tmp_path: Path) -> None:
    upper, target = tmp_path / "sandbox" / "upper", tmp_path / "layer"
    for name in ("etc/hosts", "etc/kept", "run/e2b/id", "srv/file"):
        (upper / name).parent.mkdir(parents=True, exist_ok=True)
        (upper / name).write_text(name)
    (tmp_path / "outside").write_text("outside")
    (upper / "etc" / "resolv.conf").symlink_to(tmp_path / "outside")
    target.mkdir()
    layer = keep_written(tmp_path / "sandbox", target)
    assert layer is not None
    found = sorted(str(path.relative_to(layer)) for path in layer.rglob("*") if not path.is_dir() or path.is_symlink())
    assert found == ["etc/kept", "etc/resolv.conf", "srv/file"]
    assert (tmp_path / "outside").read_text() == "outside"
