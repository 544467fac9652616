"""The audit log: its chain, what breaks it, its size, and what a killed server leaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.control.access.audit import AuditLog, Verified, entries, sealed, verify
from atoll.control.access.audit_entries import SUMMARY_AFTER_S, Audit, Audited
from atoll.control.access.auth import Caller
from atoll.control.access.gate import Answered, known
from atoll.model.errors import InvalidRequest

CALLER = Caller("team-1", "e2b_0123456789")


def written(directory: Path, count: int, *, most_mib: int = 16) -> None:
    with AuditLog(directory, most_mib) as log:
        for at in range(count):
            log.note({"at": f"2026-11-27T00:00:{at % 60:02}Z", "action": "POST /sandboxes", "padding": "x" * 400})


def only_file(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


def test_what_was_noted_is_there_when_the_block_has_ended(tmp_path: Path) -> None:
    written(tmp_path, 3)
    found = list(entries(tmp_path))
    assert [one["n"] for one in found] == [1, 2, 3]
    assert verify(tmp_path) == Verified(3, 1, found[-1]["hash"], cut_off=False)
    assert only_file(tmp_path).stat().st_mode & 0o777 == 0o600


def test_the_next_server_goes_on_in_the_same_chain(tmp_path: Path) -> None:
    written(tmp_path, 2)
    early = verify(tmp_path).head
    written(tmp_path, 2)
    assert verify(tmp_path, early).entries == 4


def test_a_line_that_a_killed_server_did_not_finish_is_cut_off(tmp_path: Path) -> None:
    written(tmp_path, 2)
    with only_file(tmp_path).open("ab") as file:
        file.write(b'{"action":"POST /san')
    assert verify(tmp_path).cut_off
    written(tmp_path, 1)
    assert (verify(tmp_path).entries, verify(tmp_path).cut_off) == (3, False)


def test_a_file_of_half_a_line_alone_does_not_break_the_chain(tmp_path: Path) -> None:
    written(tmp_path, 2)
    (tmp_path / "audit-000000000003.jsonl").write_bytes(b'{"action":"POST /san')
    written(tmp_path, 1)
    assert verify(tmp_path).entries == 3


def test_an_empty_log_is_whole_and_follows_nothing(tmp_path: Path) -> None:
    assert verify(tmp_path / "absent").entries == 0
    written(tmp_path, 0)
    assert verify(tmp_path).entries == 0


def _changed(lines: list[str]) -> list[str]:
    return [lines[0], lines[1].replace("POST", "GET"), *lines[2:]]


def _anew(lines: list[str]) -> list[str]:
    """A forger who knows how hashes are made, but leaves what follows as it is."""
    entry = json.loads(lines[1])
    line, _ = sealed({"action": "GET /sandboxes"}, entry["n"], entry["prev"])
    return [lines[0], line.decode().rstrip("\n"), *lines[2:]]


@pytest.mark.parametrize(
    "forge",
    [
        _changed,
        _anew,
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines[:2], lines[1], *lines[2:]],
        lambda lines: [*lines[:2], "nonsense", *lines[2:]],
        lambda lines: [*lines[:2], "[]", *lines[2:]],
        lambda lines: [*lines[:2], "{}", *lines[2:]],
    ],
    ids=["changed", "sealed anew", "left out", "swapped", "twice", "no JSON", "a list", "empty"],
)
def test_what_was_changed_is_found(tmp_path: Path, forge: Callable[[list[str]], list[str]]) -> None:
    written(tmp_path, 4)
    path = only_file(tmp_path)
    path.write_text("".join(f"{line}\n" for line in forge(path.read_text().splitlines())))
    with pytest.raises(InvalidRequest, match=r"changed|missing"):
        verify(tmp_path)


def test_that_its_end_is_missing_shows_who_kept_a_later_hash(tmp_path: Path) -> None:
    written(tmp_path, 4)
    head, path = verify(tmp_path).head, only_file(tmp_path)
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:3]))
    assert verify(tmp_path).entries == 3
    with pytest.raises(InvalidRequest, match="cut off"):
        verify(tmp_path, head)


def test_it_stays_as_small_as_it_may_be_and_a_chain(tmp_path: Path) -> None:
    for _ in range(30):
        written(tmp_path, 100, most_mib=1)
    found = verify(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1 << 20
    assert found.first > 1
    assert found.first + found.entries == 3001
    (tmp_path / sorted(path.name for path in tmp_path.iterdir())[2]).unlink()
    with pytest.raises(InvalidRequest, match="missing"):
        verify(tmp_path)


def test_a_disk_that_takes_nothing_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = threading.Event()

    def full(*_: object) -> int:
        tried.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("atoll.control.access.audit._MOST_WAITING", 5)
    with AuditLog(tmp_path, 16) as log, monkeypatch.context() as patch:
        patch.setattr("atoll.control.access.audit.os.write", full)
        log.note({"action": "first"})
        assert tried.wait(60), "the thread has it, and nothing else"
        for at in range(9):
            log.note({"action": f"later {at}"})
        # (the thread tries again in a second; the block's end waits for it)
    actions = [one["action"] for one in entries(tmp_path)]
    assert actions == ["first", *(f"later {at}" for at in range(5)), "lost"]
    assert [one.get("count") for one in entries(tmp_path)][-1] == 4
    assert verify(tmp_path).entries == 7


@pytest.mark.parametrize(
    ("audited", "method", "caller", "is_there"),
    [
        (Audited.CHANGES, "POST", CALLER, True),
        (Audited.CHANGES, "GET", CALLER, False),
        (Audited.ALL, "GET", CALLER, True),
        (Audited.ALL, "POST", None, False),
        (Audited.OFF, "POST", CALLER, False),
    ],
)
def test_what_is_audited(tmp_path: Path, audited: Audited, method: str, caller: Caller | None, is_there: bool) -> None:
    with AuditLog(tmp_path, 1) as log:
        target = {"sandbox_id": "a%2Fb"}
        Audit(log, audited).answered(Answered("r1", method, "/sandboxes/{sandbox_id}", 204, 0.0123, caller, target))
    found = list(entries(tmp_path))
    assert bool(found) is is_there
    for entry in found:
        assert CALLER.key not in json.dumps(entry)
        assert (entry["request"], entry["team"]) == ("r1", "team-1")
        assert entry["action"] == f"{method} /sandboxes/{{sandbox_id}}"
        assert (entry["target"], entry["status"], entry["ms"]) == ({"sandbox_id": "a/b"}, 204, 12.3)
        assert entry["key"].startswith("sha256:")


def test_a_team_that_floods_pushes_out_nobody_elses_entries(tmp_path: Path) -> None:
    """Nor do its own first ones go, nor those of another key of its; what has no entry is summed up."""
    now, later = [0.0], []

    def answer(audit: Audit, team: str, key: str, count: int = 1) -> None:
        one = Answered("r", "POST", "/sandboxes/{sandbox_id}", 429, 0.1, Caller(team, key), {"sandbox_id": "é" * 200})
        for _ in range(count):
            audit.answered(one)

    with AuditLog(tmp_path, 1) as log:
        audit = Audit(log, Audited.CHANGES, lambda: now[0], lambda after, call: later.append((after, call)))
        answer(audit, "quiet", "a")
        answer(audit, "loud", "first")
        answer(audit, "loud", "second", 5000)
        answer(audit, "loud", "third")
        now[0] += 86400
        answer(audit, "loud", "second")
        ((after, flush),) = later
        assert after == SUMMARY_AFTER_S
        flush()
        answer(audit, "quiet", "a")
        audit.flush()
    found = list(entries(tmp_path))
    assert verify(tmp_path).first == 1
    assert [one["team"] for one in (found[0], found[-1])] == ["quiet", "quiet"]
    (summary,) = [one for one in found if one["action"] == "summary"]
    own = [one["key"] for one in found if one["team"] == "loud" and one is not summary]
    assert len(set(own)) == 3, "other keys of the team have a part of their own"
    assert own[-1] == own[1], "a day later it has a share again"
    assert len(own) + summary["count"] == 5003
    assert summary["keys"] == {own[1]: summary["count"]}
    assert summary["actions"] == {"POST /sandboxes/{sandbox_id} 429": summary["count"]}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < (1 << 20) / 4


def test_a_team_alone_does_not_fill_what_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.control.access.audit._MOST_WAITING", 10)
    log = AuditLog(tmp_path, 16)  # its thread has not begun
    for _ in range(20):
        log.note({"action": "x", "team": "loud"})
    log.note({"action": "x", "team": "quiet"})
    with log:
        pass
    assert [one.get("team") for one in entries(tmp_path)] == [*["loud"] * 5, "quiet", None]


def test_a_method_that_somebody_made_up_is_no_label_of_a_figure() -> None:
    assert [known(method) for method in ("GET", "PATCH", "get", "X" * 100)] == ["GET", "PATCH", "other", "other"]
