"""Small pure parts of the agent runtime: settings, text of files, line ranges, variables, replay's decisions."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from atoll import runtime
from atoll.runtime import (
    CmdOutputMetadata,
    CmdOutputObservation,
    CmdRunAction,
    ErrorObservation,
    FileEditAction,
    IPythonRunCellAction,
    MalformedEvent,
    Observation,
    SandboxConfig,
    Step,
    load_run,
    replay,
)
from atoll.runtime.events.base import Action
from atoll.runtime.files.file_actions import read_lines
from atoll.runtime.files.texts import decode, looks_binary
from atoll.runtime.files.tree import tar_stream, zip_of_tar
from atoll.runtime.files.untar import BadArchive
from atoll.runtime.replay import Outcome, difference, needs_jupyter, parse_run
from atoll.runtime.shell.protocol import key_bytes
from atoll.runtime.variables import checked_variables, variables_of_environ

EXAMPLE = Path(__file__).parents[2] / "examples" / "create-and-serve.json"


def test_exports_are_what_all_says() -> None:
    assert sorted(runtime.__all__) == list(runtime.__all__)
    assert all(hasattr(runtime, name) for name in runtime.__all__)


def test_config_has_openhands_defaults_and_refuses_the_unknown() -> None:
    config = SandboxConfig.from_toml_section({"timeout": 30, "base_container_image": None})["sandbox"]
    assert (config.timeout, config.close_delay, config.pause_closed_runtimes) == (30, 3600, True)
    assert config.base_container_image == "nikolaik/python-nodejs:python3.12-nodejs22"
    with pytest.raises(ValueError, match=r"(?s)Invalid sandbox configuration: .*nonsense"):
        SandboxConfig.from_toml_section({"nonsense": 1})
    with pytest.raises(ValidationError):
        SandboxConfig().timeout = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    "data",
    [
        b"plain\n",
        "ünï\r\n漢\r\n".encode(),
        b"\xef\xbb\xbfbom\n",
        "\ufeffwide\n".encode("utf-16-le"),
        b"caf\xe9\n",
        b"mixed\r\nends\n",
    ],
)
def test_text_goes_back_into_the_bytes_it_came_from(data: bytes) -> None:
    stored = decode(data)
    assert stored.encode(stored.text) == data


def test_crlf_files_are_edited_with_lf() -> None:
    stored = decode(b"a\r\nb\r\n")
    assert stored.text == "a\nb\n"
    assert stored.encode("a\nX\nb\n") == b"a\r\nX\r\nb\r\n"


def test_binary_is_told_from_text() -> None:
    assert looks_binary(b"\x7fELF\0")
    assert looks_binary(bytes(range(1, 9)) * 50)
    assert not looks_binary("漢字\n\t".encode())
    assert not looks_binary(b"")
    assert not looks_binary("\ufeffwide".encode("utf-16-le"))


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, -1, "abcd"), (1, 2, "b"), (1, -1, "bcd"), (2, 9, "cd"), (9, 12, ""), (-3, 1, "a"), (3, 1, ""), (0, 0, "")],
)
def test_line_ranges_of_read(start: int, end: int, expected: str) -> None:
    assert "".join(read_lines(list("abcd"), start, end)) == expected


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("C-c", b"\x03"),
        ("C-D", b"\x04"),
        (" C-z ", b"\x1a"),
        ("C-\\", b"\x1c"),
        ("C-1", None),
        ("c-c", None),
        ("C-cc", None),
    ],
)
def test_names_of_keys(text: str, key: bytes | None) -> None:
    assert key_bytes(text) == key


def test_variables_from_our_environment() -> None:
    environ = {"SANDBOX_ENV_TOKEN": "t", "OTHER": "x"}
    assert variables_of_environ(environ, SandboxConfig(enable_auto_lint=True)) == {
        "TOKEN": "t",
        "ENABLE_AUTO_LINT": "true",
    }
    assert checked_variables({"a": "1"}) == {"A": "1"}


def test_a_tree_through_tar_and_zip(tmp_path: Path) -> None:
    root = tmp_path / "r"
    (root / "d").mkdir(parents=True)
    (root / "d" / "x").write_bytes(b"x" * 1000)
    (root / "d" / "x").chmod(0o700)
    (root / ".dot").write_text("")
    (root / "l").symlink_to("d/x")
    os.mkfifo(root / "pipe")
    data = b"".join(tar_stream(root))
    assert len(data) % tarfile.BLOCKSIZE == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert sorted(archive.getnames()) == ["r", "r/.dot", "r/d", "r/d/x", "r/l"]
        assert archive.getmember("r/d/x").mode == 0o700
    made = zip_of_tar(iter([data[:700], data[700:]]))
    with zipfile.ZipFile(made) as zipped:
        assert zipped.read("r/d/x") == b"x" * 1000
        assert zipped.read("r/l") == b"d/x"
    made.unlink()


def test_names_that_leave_the_archive_are_left_out() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("../../etc/passwd", "/etc/passwd", "a/../../b", "fine"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    made = zip_of_tar(iter([out.getvalue()]))
    with zipfile.ZipFile(made) as zipped:
        assert zipped.namelist() == ["fine"]
    made.unlink()


def test_a_cut_off_stream_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "f").write_bytes(b"x" * 5000)
    data = b"".join(tar_stream(tmp_path / "f"))
    (tmp_path / "f").unlink()
    with pytest.raises(BadArchive, match="ends early"):
        zip_of_tar(iter([data[:2000]]))
    assert list(tmp_path.iterdir()) == []


class Recorder:
    """Answers every action as the test says."""

    def __init__(self, answers: dict[str, Observation]) -> None:
        self.asked: list[Action] = []
        self._answers = answers

    def run_action(self, action: Action) -> Observation:
        self.asked.append(action)
        return self._answers[action.action]


def _ran(content: str, code: int) -> CmdOutputObservation:
    return CmdOutputObservation(content, command="c", metadata=CmdOutputMetadata(exit_code=code))


HISTORY = [
    {"id": 0, "source": "user", "action": "message", "args": {"content": "do it"}},
    {"id": 1, "source": "agent", "action": "run", "args": {"command": "make"}, "timeout": 120},
    {"id": 2, "cause": 1, "observation": "run", "content": "ok", "extras": {"command": "make", "exit_code": 0}},
    {"id": 3, "source": "user", "action": "run", "args": {"command": "rm -rf /"}},
    {"id": 4, "source": "agent", "action": "dance", "args": {}},
    {"id": 5, "source": "agent", "action": "finish", "args": {}},
]


@pytest.mark.parametrize("document", [HISTORY, {"history": HISTORY}])
def test_a_replay_carries_out_the_agents_actions_only(tmp_path: Path, document: object) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(document))
    worker, told = Recorder({"run": _ran("ok", 0)}), []
    summary = replay(file, worker, told.append, timeout_s=5)
    assert [(type(action), action.timeout) for action in worker.asked] == [(CmdRunAction, 5)]
    outcomes = [step.outcome for step in told]
    assert outcomes == ["shown", "running", "executed", "skipped", "skipped", "skipped", "shown"]
    assert all(step.reason for step in told if step.outcome is Outcome.SKIPPED)
    assert (summary.executed, summary.differing, summary.errors) == (1, [], [])


def test_a_replay_tells_what_is_different_now() -> None:
    events = parse_run(HISTORY)
    summary = replay(events, Recorder({"run": _ran("broken", 2)}))
    assert [step.difference for step in summary.differing] == ["exit code 2, recorded 0"]
    failed = replay(events, Recorder({"run": ErrorObservation("no")}))
    assert len(failed.errors) == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (_ran("a", 0), _ran("a\n", 0), ""),
        (_ran("a", 0), _ran("b", 0), "output 'b', recorded 'a'"),
        (_ran("a", 0), ErrorObservation("e"), "recorded 'run', now 'error': 'e'"),
    ],
)
def test_differences_in_words(old: Observation, new: Observation, words: str) -> None:
    assert difference(old, new) == words


@pytest.mark.parametrize("text", ["", "{}", "5", '{"history": 5}', "[5]", "[" * 100_000])
def test_what_is_no_recorded_run_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(MalformedEvent):
        load_run(tmp_path / "f")


def test_the_kernel_is_needed_only_for_cells() -> None:
    assert needs_jupyter([CmdRunAction("ls"), IPythonRunCellAction("1")])
    assert not needs_jupyter([CmdRunAction("ls")])


def test_our_own_example_is_a_recorded_run() -> None:
    events = load_run(EXAMPLE)
    actions: Sequence[Action] = [event for event in events if isinstance(event, Action) and event.runnable]
    assert {type(action) for action in actions} >= {CmdRunAction, FileEditAction}
    assert not needs_jupyter(events)
    assert isinstance(Step(0, events[0], Outcome.SHOWN), Step)
