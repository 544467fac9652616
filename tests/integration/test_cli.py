"""The commands as a user types them, against real sandboxes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.tiers import one_tier

pytestmark = one_tier("commands over the SDK, whose calls are tested in each tier")

EVENTS = [
    {"id": 1, "source": "user", "action": "message", "args": {"content": "serve a page"}},
    {
        "id": 2,
        "source": "agent",
        "action": "write",
        "args": {"path": "/workspace/index.html", "content": "<title>A [page]</title>"},
    },
    {"id": 3, "source": "agent", "action": "run", "args": {"command": "cd /workspace && python3 -m http.server 8000"}},
]


def atoll(*words: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line with what the environment says of a platform."""
    return subprocess.run(
        [sys.executable, "-m", "atoll", *words],
        env={**os.environ, **environ},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_run_returns_the_commands_output_and_exit_code(server: Any) -> None:
    done = atoll("run", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_run_reads_its_code_from_standard_input(server: Any) -> None:
    done = atoll("run", "-", stdin="for i in 1 2; do\n  echo $i\ndone\n")
    assert (done.returncode, done.stdout) == (0, "1\n2\n")


def test_run_ends_what_takes_too_long(server: Any) -> None:
    done = atoll("run", "--timeout", "1", "echo begun; sleep 100")
    assert (done.returncode, done.stdout) == (124, "begun\n")


def test_run_leaves_no_sandbox_behind(server: Any) -> None:
    from e2b import Sandbox

    def ids() -> set[str]:
        return {sandbox.sandbox_id for sandbox in Sandbox.list().next_items()}

    before = ids()
    assert atoll("run", "false").returncode == 1
    assert atoll("run", "--template", "no-such-template", "true").returncode == 1
    assert ids() == before


def test_run_names_an_unknown_template(server: Any) -> None:
    done = atoll("run", "--template", "no-such-template", "true")
    assert "no-such-template" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_python_prints_results_and_fails_with_a_traceback(server: Any, interpreter_template: Any) -> None:
    good = atoll("run", "--python", "print('hi'); 6 * 7")
    assert (good.returncode, good.stdout) == (0, "hi\n42\n")
    bad = atoll("run", "--python", "1 / 0")
    assert bad.returncode == 1
    assert "ZeroDivisionError" in bad.stderr


def test_without_a_server_a_platform_is_started_for_the_command(templates_dir: Path, tmp_path: Path) -> None:
    environ = {name: "" for name in os.environ if name.startswith("E2B_")}
    done = atoll(
        "run", "hostname; exit 3", ATOLL_DATA_DIR=str(tmp_path), ATOLL_TEMPLATES_DIR=str(templates_dir), **environ
    )
    assert done.returncode == 3, done.stderr
    assert not list((tmp_path / "embedded").iterdir())


def test_replay_shows_each_action_and_fetches_the_page_from_outside(server: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(EVENTS))
    done = atoll("replay", str(file), "--soft-timeout", "1", "--fetch", "8000", COLUMNS="200")
    assert done.returncode == 0, done.stdout + done.stderr
    for text in ("serve a page", "/workspace/index.html", "python3 -m http.server 8000", "HTTP 200", "A [page]"):
        assert text in done.stdout
    assert done.stdout.strip().splitlines()[-1].startswith("OK: 2 actions replayed")


def test_replay_fails_when_the_page_is_not_there(server: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(EVENTS[:2]))
    done = atoll("replay", str(file), "--fetch", "8000", "--json", COLUMNS="200")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert (told["ok"], told["fetched"]["status"]) == (False, 502)
    assert "FAILED" in done.stderr


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"action": 5}]'])
def test_replay_says_what_is_wrong_with_a_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(text)
    done = atoll("replay", str(file))
    assert done.returncode == 1
    assert done.stderr.startswith("atoll: ")
    assert "Traceback" not in done.stderr


def test_doctor_finds_a_machine_that_runs_sandboxes_usable(server: Any) -> None:
    done = atoll("doctor", "--json")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["usable"]
    assert report["tiers"]["namespaces"]


def test_template_list_names_the_default_template(templates_dir: Path) -> None:
    done = atoll("template", "list", "--json", ATOLL_TEMPLATES_DIR=str(templates_dir))
    assert "base" in [row["templateID"] for row in json.loads(done.stdout)]
    again = atoll("template", "build", "base", ATOLL_TEMPLATES_DIR=str(templates_dir))
    assert "ready" in again.stderr


def test_an_unknown_template_cannot_be_built(tmp_path: Path) -> None:
    done = atoll("template", "build", "castle", ATOLL_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "castle" in done.stderr
    assert "base" in done.stderr


def test_sandboxes_are_listed_used_and_ended(server: Any, sandbox: Any, tmp_path: Path) -> None:
    name = sandbox.sandbox_id
    rows = {row["sandbox_id"]: row for row in json.loads(atoll("ls", "--json").stdout)}
    assert rows[name]["state"] == "running"
    assert name in atoll("ls").stdout

    done = atoll(
        "exec",
        "-e",
        "A=b c",
        "--cwd",
        "/tmp",
        name,
        'read line; echo "$A $line"; pwd; echo x >&2; exit 3',
        stdin="in\n",
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "b c in\n/tmp\n", "x\n")
    assert atoll("exec", name, "printf", "%s|", "a b", "$HOME", "-n").stdout == "a b|$HOME|-n|"
    late = atoll("exec", "--timeout", "1", name, "sleep 100")
    assert (late.returncode, late.stderr) == (124, "atoll: ended after 1 s\n")
    assert "no terminal" in atoll("shell", name).stderr

    assert "e2b-not-here" in atoll("logs", "e2b-not-here").stderr
    assert atoll("logs", name).returncode == 0
    other = atoll("kill", "inotthere0000000000a", name)
    assert (other.returncode, other.stdout) == (1, f"{name}: ended\n")
    assert not sandbox.is_running()
    assert atoll("kill").returncode == 1


def test_files_and_directories_are_copied_both_ways(server: Any, sandbox: Any, tmp_path: Path) -> None:
    name, tree, back = sandbox.sandbox_id, tmp_path / "tree", tmp_path / "back"
    (tree / "deep").mkdir(parents=True)
    back.mkdir()
    (tree / "deep" / "bytes").write_bytes(bytes(range(256)) * 1000)
    (tree / "run.sh").write_text("echo ran")
    (tree / "run.sh").chmod(0o755)
    (tree / "link").symlink_to("deep/bytes")

    assert atoll("cp", str(tree), f"{name}:there").returncode == 0
    assert sandbox.commands.run("./there/tree/run.sh; readlink there/tree/link; stat -c %U there").stdout == (
        "ran\ndeep/bytes\nuser\n"
    )
    assert atoll("cp", f"{name}:there/tree", str(back)).returncode == 0
    assert (back / "tree" / "link").readlink() == Path("deep/bytes")
    assert (back / "tree" / "deep" / "bytes").read_bytes() == (tree / "deep" / "bytes").read_bytes()
    assert (back / "tree" / "run.sh").stat().st_mode & 0o111

    # A file, into a directory and to a name; what was there is replaced whole.
    assert atoll("cp", str(tree / "run.sh"), f"{name}:there/").returncode == 0
    assert atoll("cp", f"{name}:there/run.sh", str(back / "other.sh")).returncode == 0
    assert (back / "other.sh").read_text() == "echo ran"

    # A link of the host's is not followed, whatever the sandbox sends.
    outside = tmp_path / "outside"
    outside.mkdir()
    (back / "tree" / "deep" / "bytes").unlink()
    (back / "tree" / "deep").rmdir()
    (back / "tree" / "deep").symlink_to(outside)
    assert atoll("cp", f"{name}:there/tree", str(back)).returncode == 0
    assert (list(outside.iterdir()), (back / "tree" / "deep").is_symlink()) == ([], False)
    (tmp_path / "tree" / "tree").symlink_to(outside)
    refused = atoll("cp", f"{name}:there/tree", str(tree))
    assert (refused.returncode, list(outside.iterdir())) == (1, [])
    assert "is a link" in refused.stderr
    assert atoll("cp", f"{name}:no-such", str(back)).stderr == "atoll: path '/home/user/no-such' does not exist\n"
    assert "`atoll ls`" in atoll("cp", "inotthere0000000000a:x", str(back)).stderr
    assert "SANDBOX:PATH" in atoll("cp", str(tree), str(back)).stderr
