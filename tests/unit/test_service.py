"""`atoll service`: the unit's text, what would be done, and that systemd takes it."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.cli import service
from atoll.cli.service import Place, Step, carry_out, install_steps, quoted, settings_text, uninstall_steps, unit_text
from atoll.model.errors import PlatformError

CONFIG = Path(service.__file__).parents[1] / "config.py"
SYSTEM = Place.of("atoll", {}, as_root=True)


def sections(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def test_a_stop_of_the_unit_leaves_sandboxes_to_the_next_server() -> None:
    found = sections(unit_text(SYSTEM, Path("/var/lib/atoll")))["Service"]
    assert found["KillMode"] == "process"
    assert "--keep-sandboxes" in found["ExecStart"]


def test_nothing_that_sandboxes_would_inherit_is_in_it() -> None:
    found = sections(unit_text(SYSTEM, Path("/var/lib/atoll")))["Service"]
    inherited = ("NoNewPrivileges", "SystemCallFilter", "RestrictAddressFamilies", "MemoryDenyWriteExecute")
    assert not {*inherited, "PrivateTmp", "ProtectSystem", "RestrictSUIDSGID", "ProtectClock"} & set(found)
    assert found["CapabilityBoundingSet"].startswith("~")
    from atoll.isolation.namespaces.posture import ZYGOTE_CAPABILITIES

    assert not {f"CAP_{one.name}" for one in ZYGOTE_CAPABILITIES} & set(found["CapabilityBoundingSet"][1:].split())


@pytest.mark.parametrize("as_root", [True, False])
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_systemd_takes_it(tmp_path: Path, as_root: bool) -> None:
    place = Place.of("atoll-test", {"HOME": "/home/a b"}, as_root=as_root)
    path = tmp_path / "atoll-test.service"
    path.write_text(unit_text(place, Path("/var/lib/a %b $c")))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    about_it = [line for line in (done.stdout + done.stderr).splitlines() if "atoll-test" in line]
    assert (done.returncode, about_it) == (0, [])


@pytest.mark.parametrize(
    ("word", "text"),
    [("/a/b", "/a/b"), ("/a b", '"/a b"'), ("50%", "50%%"), ("$x", "$$x"), ('a"b\\', '"a\\"b\\\\"')],
)
def test_words_are_what_systemd_makes_of_them(word: str, text: str) -> None:
    assert quoted(word) == text


def test_settings_of_the_shell_go_into_a_file_that_nobody_else_reads(tmp_path: Path) -> None:
    place = Place("atoll", tmp_path / "u" / "atoll.service", tmp_path / "s" / "atoll.env", False)
    environ = {"ATOLL_API_KEYS": 'e2b_"1$', "ATOLL_DATA_DIR": "/x", "HOME": "/root", "OTEL_SERVICE_NAME": "a"}
    assert settings_text(environ).splitlines()[1:] == ['ATOLL_API_KEYS="e2b_\\"1\\$"', 'OTEL_SERVICE_NAME="a"']
    for step in install_steps(place, Path("/x"), environ)[:2]:
        carry_out(step)
    assert place.settings.stat().st_mode & 0o777 == 0o600
    assert "e2b_" not in place.unit.read_text()
    place.settings.write_text("ATOLL_PORT=1\n")
    later = install_steps(place, Path("/y"), environ)
    assert [step.path for step in later if step.text is not None] == [place.unit], "what was edited stays"
    for step in uninstall_steps(place):
        if step.path is not None:
            carry_out(step)
    assert (place.unit.exists(), place.settings.exists()) == (False, True)


def test_paths_of_the_shell_hold_where_the_service_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {
        "ATOLL_CDI_DIRS": "cdi, /etc/cdi",
        "ATOLL_RUNSC": "runsc",
        "ATOLL_TEMPLATES_DIR": "./templates",
        "ATOLL_TLS_CERT": "",
    }
    assert settings_text(environ).splitlines()[1:] == [
        f'ATOLL_CDI_DIRS="{tmp_path}/cdi,/etc/cdi"',
        'ATOLL_RUNSC="runsc"',
        f'ATOLL_TEMPLATES_DIR="{tmp_path}/templates"',
        'ATOLL_TLS_CERT=""',
    ]
    assert f'ATOLL_RUNSC="{tmp_path}/bin/runsc"' in settings_text({"ATOLL_RUNSC": "bin/runsc"})
    paths = set(re.findall(r'\b(?:_path\(environ, |Path\(environ.get\()"(ATOLL_[A-Z_]+)"', CONFIG.read_text()))
    assert paths <= service._PATHS, "a setting that is a path"


def test_a_step_that_fails_says_what_was_printed() -> None:
    with pytest.raises(PlatformError, match="ended with 3: no such unit"):
        carry_out(Step("x", command=("sh", "-c", "echo no such unit >&2; exit 3")))
    with pytest.raises(PlatformError, match="no systemd"):
        carry_out(Step("x", command=("atoll-no-such-program",)))
    carry_out(Step("x", command=("sh", "-c", "exit 3"), may_fail=True))


def test_a_dry_run_shows_the_unit_and_changes_nothing(tmp_path: Path) -> None:
    before = {path: path.exists() for path in (SYSTEM.unit, SYSTEM.settings)}
    environ = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": "", "ATOLL_API_KEYS": "e2b_secret"}
    command = [sys.executable, "-m", "atoll", "service", "install", "--dry-run", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert "would write" in done.stdout
    assert "KillMode=process" in done.stdout
    assert "e2b_secret" not in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert {path: path.exists() for path in before} == before


def test_the_reason_for_what_is_left_out_is_in_the_help() -> None:
    assert "inherit" in (service.__doc__ or "")
