"""Recipes: which sources and settings of the machine are used, what a changed recipe means, what a failure says."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.images.recipes import RECIPES, build, debian, pip_settings
from atoll.images.recipes.debian import Source
from atoll.images.recipes.recipe import revision
from atoll.model.errors import BuildFailed

DEB822 = """\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
# a comment in between
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb-src
URIs: http://mirror.example/debian
Suites: bookworm
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: https://vendor.example/node_20.x
Suites: nodistro
Components: main
"""

ONE_LINE = """\
# deb http://off.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main non-free # why
deb cdrom:[Debian 12]/ bookworm main
deb https://download.docker.example/linux/debian bookworm stable
deb-src http://mirror.example/debian bookworm main
"""


def test_debian_stanzas_are_kept_and_those_of_others_are_not() -> None:
    kept = debian.debian_only(debian.parse_deb822(DEB822), "bookworm")
    assert [(source.uris, source.suites, source.components) for source in kept] == [
        (("http://mirror.example/debian",), ("bookworm", "bookworm-updates"), ("main",)),
        (("http://mirror.example/debian-security",), ("bookworm-security",), ("main",)),
    ]


def test_a_key_inside_a_stanza_stays_whole() -> None:
    security = debian.debian_only(debian.parse_deb822(DEB822), "bookworm")[1]
    rendered = security.render()
    assert "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n" in rendered
    assert next(debian.parse_deb822(rendered)).options == security.options


def test_one_line_sources_are_read_with_their_options() -> None:
    kept = debian.debian_only(debian.parse_one_line(ONE_LINE), "bookworm")
    assert kept == [Source(("http://mirror.example/debian",), ("bookworm",), ("main",), {"Signed-By": "/k.gpg"})]


def test_a_machine_that_is_no_debian_gets_the_default_suite_and_mirror(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text('ID=ubuntu\nVERSION_CODENAME="noble"\n')
    assert debian.host_archive(tmp_path) == debian.Archive(debian.FALLBACK_SUITE, ())


def test_a_debian_builds_its_own_release_from_its_own_sources(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    (tmp_path / "apt" / "sources.list.d").mkdir(parents=True)
    (tmp_path / "apt" / "sources.list").write_text(ONE_LINE)
    (tmp_path / "apt" / "sources.list.d" / "debian.sources").write_text(DEB822)
    (tmp_path / "apt" / "sources.list.d" / "old.sources.disabled").write_text(DEB822)
    archive = debian.host_archive(tmp_path)
    assert archive.suite == "bookworm"
    assert len(archive.sources) == 3


def test_only_settings_that_decide_whether_a_download_works_are_passed_on() -> None:
    dump = """\
APT::Architecture "amd64";
Acquire::http::Proxy "http://proxy.example:3142";
Acquire::https::CaInfo "/etc/ca.pem";
Acquire::Check-Valid-Until "false";
Acquire::Languages:: "en";
Acquire::http "";
DPkg::Post-Invoke:: "rm -rf /";
Dir::Etc "etc/apt";
"""
    assert debian.passed_on_settings(dump) == [
        'Acquire::http::Proxy "http://proxy.example:3142"',
        'Acquire::https::CaInfo "/etc/ca.pem"',
        'Acquire::Check-Valid-Until "false"',
    ]


def test_sources_go_to_mmdebstrap_by_file_and_only_if_there_are_any(tmp_path: Path) -> None:
    def command(*sources: Source) -> list[str]:
        archive = debian.Archive("bookworm", sources)
        return debian.mmdebstrap_command(
            "mmdebstrap", archive, ("bash",), tmp_path / "sources", (), target="/t", rootless=False
        )

    assert command()[-2:] == ["bookworm", "/t"]
    assert command(Source(("http://m/",), ("bookworm",), ("main",)))[-2:] == ["/t", str(tmp_path / "sources")]
    assert "URIs: http://m/" in (tmp_path / "sources").read_text()


# ---------------------------------------------------------------------------------------------------------- pip


def test_pip_settings_come_from_files_then_sections_then_variables(tmp_path: Path) -> None:
    first, second = tmp_path / "first.conf", tmp_path / "second.conf"
    first.write_text("[global]\nindex-url = http://one\ntimeout = 5\nuser = true\n[list]\nformat = columns\n")
    second.write_text("[global]\nindex_url = http://two\n[install]\nindex-url = http://install\n")
    assert pip_settings.read_settings([first, second], {})["index-url"] == "http://install"
    settings = pip_settings.read_settings(
        [first, second], {"PIP_INDEX_URL": "http://env", "PIP_REQUIRE_VIRTUALENV": "1"}
    )
    assert settings == {"index-url": "http://env", "timeout": "5"}


def test_a_damaged_pip_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "bad.conf").write_text("no section\n")
    assert pip_settings.read_settings([tmp_path / "bad.conf"], {}) == {}


def test_pip_config_file_set_to_nothing_means_no_files(tmp_path: Path) -> None:
    assert pip_settings.config_files({"PIP_CONFIG_FILE": os.devnull, "HOME": str(tmp_path)}, tmp_path) == []


def test_the_certificates_go_along_as_a_copy(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("cert")
    for settings, environ in (({"cert": str(bundle)}, {}), ({}, {"REQUESTS_CA_BUNDLE": str(bundle)})):
        found = pip_settings.translate(settings, environ)
        assert list(found.copies.values()) == [bundle]
        assert f"cert = /run/build/{next(iter(found.copies))}" in found.config
        assert str(tmp_path) not in found.config


def test_local_indexes_are_bound_so_that_their_pages_can_point_beside_them(tmp_path: Path) -> None:
    (tmp_path / "mirror" / "simple").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    settings = {
        "extra-index-url": f"file://{tmp_path}/mirror/simple\nhttps://pypi.example/simple file:///gone/simple",
        "find-links": f"{tmp_path}/wheels https://wheels.example/",
    }
    found = pip_settings.translate(settings, {})
    assert found.binds == {"local0": tmp_path / "mirror", "local1": tmp_path / "wheels"}
    assert "file:///run/build/local0/simple" in found.config
    assert "https://pypi.example/simple" in found.config
    assert "/run/build/local1" in found.config
    assert "gone" not in found.config
    assert str(tmp_path) not in found.config


def test_proxies_are_passed_on_in_the_spelling_they_have() -> None:
    found = pip_settings.translate({}, {"https_proxy": "http://p", "NO_PROXY": "x", "PATH": "/bin"})
    assert found.environ == {"https_proxy": "http://p", "NO_PROXY": "x"}


# -------------------------------------------------------------------------------------------------------- recipes


def test_a_revision_changes_with_everything_that_is_built(tmp_path: Path) -> None:
    script = tmp_path / "s.sh"
    script.write_text("true\n")
    recipe = replace(RECIPES["base"], script=str(script))
    revisions = {
        revision(recipe),
        revision(recipe, "parent"),
        revision(replace(recipe, apt_packages=())),
        revision(replace(recipe, pip_packages=("x",))),
        revision(replace(recipe, interpreter=True)),
        revision(replace(recipe, env_vars={"A": "1"})),
    }
    script.write_text("false\n")
    assert len(revisions | {revision(recipe)}) == 7


def test_a_summary_may_be_reworded_without_a_new_build() -> None:
    assert revision(RECIPES["base"]) == revision(replace(RECIPES["base"], summary="other words"))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_scripts_are_shell_that_parses(name: str) -> None:
    done = subprocess.run(["sh", "-n"], input=RECIPES[name].script_text(), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_recipe_stands_on_one_that_exists() -> None:
    for recipe in RECIPES.values():
        assert recipe.parent is None or recipe.parent in RECIPES


# ---------------------------------------------------------------------------------------------------- running programs


def test_a_failed_program_is_shown_by_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    command = ["sh", "-c", "i=0; while [ $i -lt 99 ]; do echo line $i; i=$((i+1)); done; echo why >&2; exit 3"]
    with log.open("ab", buffering=0) as file, pytest.raises(BuildFailed) as caught:
        build._run(command, file, lambda line: None, what="building 'x'", log_path=log)
    assert "building 'x' failed with exit code 3" in caught.value.message
    assert caught.value.message.endswith("line 98\nwhy")
    assert "line 5\n" not in caught.value.message
    assert str(log) in caught.value.hint
    assert "line 5\n" in log.read_text()


def test_a_program_is_ended_with_its_children_when_its_watcher_fails(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    pids: list[int] = []

    def on_line(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with log.open("ab", buffering=0) as file, pytest.raises(KeyboardInterrupt):
        build._run(["sh", "-c", "sleep 1000 & echo $!; wait"], file, on_line, what="x", log_path=log)
    for _ in range(100):
        if not _runs(pids[0]):
            break
        time.sleep(0.02)
    assert not _runs(pids[0])


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_removing_a_tree_never_crosses_into_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = tmp_path / "work" / "merged"
    point.mkdir(parents=True)
    table = tmp_path / "mountinfo"
    table.write_text(f"1 1 0:1 / {point} rw - tmpfs tmpfs rw\n")
    monkeypatch.setattr(build, "MOUNT_TABLE", table)
    with pytest.raises(BuildFailed, match="umount -R"):
        build.remove_tree(tmp_path / "work")
    assert point.is_dir()
    table.write_text(f"1 1 0:1 / {tmp_path}/work-of-another rw - tmpfs tmpfs rw\n")
    build.remove_tree(tmp_path / "work")
    assert not point.exists()
