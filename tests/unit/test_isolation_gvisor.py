"""The pure parts of the gVisor tier: what runsc is told, where it comes from, and its sudo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atoll.guest.pid1 import elevate
from atoll.guest.pid1 import relief as guest_relief
from atoll.guest.process.users import User
from atoll.isolation.gvisor import fetch, launch, oci, relief, runsc, sudo
from atoll.isolation.gvisor.fetch import Source
from atoll.isolation.linux.cgroups.full_memory import FullMemory
from atoll.isolation.linux.cgroups.groups import Group
from atoll.model.errors import BackendUnavailable
from atoll.model.sandbox import Limits, OomKill
from atoll.node.backends import may_be_asked_for

DEB822 = """\
Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
"""

USER = User("user", 1000, 1000, (1000,), "/home/user", "/bin/bash")
ROOT = User("root", 0, 0, (0,), "/root", "/bin/bash")


def test_a_container_has_its_own_of_everything_and_the_network_that_was_made_for_it() -> None:
    def networks(network: str) -> list[str | None]:
        made = oci.config(root="/r", shared="/s", runtime="/g", entry="m:f", limits=Limits(), network=network)
        json.dumps(made)
        assert made["linux"]["uidMappings"] == [{"containerID": 0, "hostID": 0, "size": 65536}]
        namespaces = made["linux"]["namespaces"]
        assert {one["type"] for one in namespaces} == {"pid", "ipc", "uts", "mount", "user", "network"}
        return [one.get("path") for one in namespaces if one["type"] == "network"]

    assert networks("") == [None]
    assert networks("/n") == ["/n"]


def test_runsc_gets_only_flags_that_it_knows() -> None:
    chosen = oci.flags("/state", platform="systrap", network=False, known=["root", "network", "host-uds", "platform"])
    assert chosen == ["--root=/state", "--platform=systrap", "--network=none", "--host-uds=create"]


def test_nothing_inside_may_open_a_socket_of_the_host() -> None:
    assert "--host-uds=create" in oci.flags("/s", platform="systrap", network=True, known=["host-uds"])


def test_a_setting_is_the_only_candidate_for_runsc(tmp_path: Path) -> None:
    unpacked = tmp_path / runsc.UNPACKED
    unpacked.parent.mkdir(parents=True)
    unpacked.touch(0o755)
    assert [path for path, _ in runsc.candidates({"ATOLL_RUNSC": "/x/runsc", "PATH": "/"}, tmp_path)] == [
        Path("/x/runsc")
    ]
    assert [path for path, _ in runsc.candidates({"PATH": "/nowhere"}, tmp_path)] == [unpacked]
    assert runsc.candidates({"PATH": "/nowhere"}, None) == []


async def test_without_runsc_the_way_to_it_is_told() -> None:
    with pytest.raises(BackendUnavailable, match="doctor --fix"):
        await runsc.find({"PATH": "/nowhere"}, None)


def test_the_machines_own_mirror_is_used_not_its_security_archive() -> None:
    source = fetch.choose_source(fetch.parse_deb822(DEB822), "bookworm")
    assert source.uri == "http://mirror.example/debian"
    assert source.signed_by == "/usr/share/keyrings/debian-archive-keyring.gpg"
    with pytest.raises(BackendUnavailable, match="trixie"):
        fetch.choose_source(fetch.parse_deb822(DEB822), "trixie")


def test_sources_of_one_line_are_read() -> None:
    lines = [
        "# deb http://no/ x main",
        "deb [arch=amd64 signed-by=/k.gpg] http://m/debian trixie main",
        "deb-src http://m x",
    ]
    assert fetch.parse_one_line(lines) == [Source("http://m/debian", ("trixie",), "/k.gpg")]


def test_only_the_oldest_debian_needs_backports_and_others_are_refused() -> None:
    assert fetch.suite_for({"ID": "debian", "VERSION_CODENAME": "bookworm"}) == "bookworm-backports"
    assert fetch.suite_for({"ID": "debian", "VERSION_CODENAME": "trixie"}) == "trixie"
    with pytest.raises(BackendUnavailable):
        fetch.suite_for({"ID": "fedora", "PRETTY_NAME": "Fedora"})


def test_the_stage_hides_nothing_that_is_needed() -> None:
    assert launch.choose_stage(["/usr/bin/runsc"]) != "/usr"
    assert launch.choose_stage(["/mnt/data/state"]) != "/mnt"


def test_sudo_takes_the_options_that_programs_use() -> None:
    order = sudo.parse(["-n", "-u", "user", "-E", "A=1", "env", "-i", "x"])
    assert (order.user, order.keep_env, order.set, order.argv) == ("user", True, {"A": "1"}, ["env", "-i", "x"])
    assert sudo.parse(["-nuuser", "id"]).user == "user"
    assert sudo.parse(["--user=user", "--", "-x"]).argv == ["-x"]
    assert sudo.parse(["-i"]).login
    assert sudo.parse(["-v"]).nothing


@pytest.mark.parametrize("arguments", [[], ["-u"], ["--frobnicate", "id"], ["-Z", "id"]])
def test_sudo_refuses_what_it_cannot_understand(arguments: list[str]) -> None:
    with pytest.raises(sudo.Usage):
        sudo.parse(arguments)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("user ALL=(ALL:ALL) NOPASSWD: ALL", True),
        ("%staff ALL=(ALL) NOPASSWD: ALL", True),
        ("%sudo ALL=(ALL:ALL) NOPASSWD: ALL", False),
        ("user ALL=(ALL:ALL) ALL", False),
        ("# user ALL=(ALL:ALL) NOPASSWD: ALL", False),
        ("user ALL=(ALL) NOPASSWD: /bin/ls", False),
        ("other ALL=(ALL) NOPASSWD: ALL", False),
    ],
)
def test_only_a_rule_for_everything_without_a_password_lets_somebody(rule: str, expected: bool) -> None:
    assert elevate.allowed(USER, ["staff"], [rule]) is expected


def test_root_needs_no_rule() -> None:
    assert elevate.allowed(ROOT, [], [])


def test_the_callers_environment_stays_behind_unless_asked_for() -> None:
    asked = {"LD_PRELOAD": "/tmp/x.so", "TERM": "xterm", "MINE": "1", "PATH": "/tmp"}
    plain = elevate.environment(asked, False, USER, ROOT, "id")
    assert "LD_PRELOAD" not in plain
    assert (plain["TERM"], plain["HOME"], plain["SUDO_USER"]) == ("xterm", "/root", "user")
    assert plain["PATH"].startswith("/usr/local/sbin")
    assert elevate.environment(asked, True, USER, ROOT, "id")["MINE"] == "1"


@pytest.mark.parametrize(
    ("wanted", "chosen", "expected"),
    [
        ("gvisor", "namespaces", True),
        ("namespaces", "gvisor", False),
        ("fake", "namespaces", False),
        ("fake", "fake", True),
        ("", "namespaces", False),
    ],
)
def test_a_call_may_ask_for_a_stronger_wall_only(wanted: str, chosen: str, expected: bool) -> None:
    assert may_be_asked_for(wanted, chosen) is expected


def test_what_the_guest_says_of_ended_processes_is_checked() -> None:
    told = {"ended": [{"pid": 4, "name": "x" * 200, "memory_bytes": 5}, {"pid": True, "name": 7}, "nonsense"]}
    found = relief.victims(told)
    assert found == [OomKill("x" * 64, 4, 5), OomKill()]
    assert relief.victims({}) == relief.victims({"ended": "all"}) == []
    assert len(relief.victims({"ended": [{"pid": 1}] * 1000})) == 64


def test_the_largest_processes_are_ended_until_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {1: 900, 5: 10, 6: 300, 7: 200}
    killed: list[int] = []
    monkeypatch.setattr(guest_relief, "_pids", lambda: list(sizes))
    monkeypatch.setattr(guest_relief, "_resident", lambda pid: sizes[pid])
    monkeypatch.setattr(guest_relief, "_name", str)
    monkeypatch.setattr("os.kill", lambda pid, number: killed.append(pid))
    ended = guest_relief.end_largest(400, spared=1)
    assert killed == [6, 7]
    assert ended[0] == {"pid": 6, "name": "6", "memory_bytes": 300}


def test_full_memory_lifts_its_limit_for_a_moment_and_says_what_is_wanting(tmp_path: Path) -> None:
    place = tmp_path / "memory"
    place.mkdir()
    for name in ("cgroup.event_control", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        (place / name).write_text("0")
    (place / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
    (place / "memory.usage_in_bytes").write_text("1500\n")
    (place / "memory.stat").write_text("total_cache 700\ntotal_shmem 300\n")
    full = FullMemory(Group("g", {"memory": place}, None, frozenset()), limit=1000, reserve=64)
    try:
        assert (place / "memory.oom_control").read_text().startswith("1")
        assert (place / "memory.limit_in_bytes").read_text() == "1064"
        assert full.missing_bytes() == 100, "what is cached of files is nobody's want"
        full.give()
        assert (place / "memory.limit_in_bytes").read_text() == "1128"
        full.take_back()
        assert (place / "memory.limit_in_bytes").read_text() == "1064"
        full.limit(2000)
        assert full.missing_bytes() == 0
        (place / "memory.oom_control").write_text("oom_kill_disable 1\nunder_oom 1\noom_kill 0\n")
        assert (full.is_stuck(), full.missing_bytes()) == (True, 1)
        full.let_the_kernel_decide()
        assert (place / "memory.oom_control").read_text().startswith("0")
    finally:
        full.close()
