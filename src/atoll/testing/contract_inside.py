"""The part of the contract that is seen from inside a sandbox: programs, signals, files, users, output, clean-up.

Every tier shows the same Linux to the programs in it, as far as these checks go. See `backend_contract`.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from atoll.isolation.base import IsolationBackend, SandboxHandle
from atoll.model.errors import SandboxGone
from atoll.testing import inside

_HARMLESS = frozenset(
    {
        "test_exit_codes_come_back_as_they_are",
        "test_both_outputs_come_back_apart",
        "test_a_program_that_is_not_there_is_an_answer",
        "test_output_of_many_megabytes_arrives_whole",
        "test_signals_between_programs_are_delivered",
        "test_a_program_can_catch_a_signal",
        "test_timeouts_inside_work",
    }
)
"""What only prints, and signals only what it has started itself."""

_Sandbox = AbstractAsyncContextManager[tuple[IsolationBackend, SandboxHandle]]


class InsideContract(ABC):
    """Mixed into BackendContract."""

    walled: bool = False
    """Whether what a sandbox does to its root file system, users and pid 1 stays inside. To be claimed: where it
    does not, most of these checks would be done to the machine that runs the tests, and are left out."""

    @pytest.fixture(autouse=True)
    def _behind_a_wall(self, request: pytest.FixtureRequest) -> None:
        inside_only = request.node.originalname in vars(InsideContract)
        if inside_only and not self.walled and request.node.originalname not in _HARMLESS:
            pytest.skip("this tier has no wall: it would be done to the machine itself")

    @abstractmethod
    def sandbox(self, place: Path) -> _Sandbox:
        """A backend with one live sandbox, ended afterwards."""

    # -- programs ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("code", [0, 1, 7, 255])
    async def test_exit_codes_come_back_as_they_are(self, tmp_path: Path, code: int) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            assert (await inside.run(handle, f"exit {code}")).code == code

    async def test_both_outputs_come_back_apart(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            done = await inside.run(handle, "echo out; echo err >&2")
            assert (done.out, done.err) == ("out\n", "err\n")

    async def test_a_program_that_is_not_there_is_an_answer(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            done = await inside.run(handle, "true", shell="/no/such/shell")
            assert done.code != 0
            assert await inside.health(handle) == 204

    async def test_output_of_many_megabytes_arrives_whole(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            done = await inside.run(handle, "head -c 8000000 /dev/zero | tr '\\0' x; echo; echo end")
            assert len(done.out) == 8000000 + len("\nend\n")
            assert done.out.endswith("x\nend\n")

    async def test_every_byte_value_survives(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            script = (
                'python3 -c "import sys; sys.stdout.buffer.write(bytes(range(256)) * 64)" > /tmp/all-bytes; '
                "od -An -tu1 -v /tmp/all-bytes | tr -s ' \\n' '\\n' | sed 1d | sort -un | wc -l"
            )
            done = await inside.run(handle, script)
            assert done.out.split()[-1] == "256", done

    async def test_what_the_spec_gives_is_in_the_environment_and_the_hosts_is_not(self, tmp_path: Path) -> None:
        os.environ["ATOLL_CONTRACT_SECRET"] = "leaked"
        try:
            async with self.sandbox(tmp_path) as (_, handle):
                done = await inside.run(handle, "env; cat /proc/1/environ 2>/dev/null")
                assert "FROM_SPEC=yes" in done.out.splitlines()
                assert "leaked" not in done.out
        finally:
            del os.environ["ATOLL_CONTRACT_SECRET"]

    async def test_programs_run_beside_each_other(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            first = "until [ -e /tmp/go ]; do sleep 0.02; done; echo went"
            waiting = asyncio.create_task(inside.run(handle, first))
            assert (await inside.run(handle, "touch /tmp/go; echo touched")).out == "touched\n"
            assert (await asyncio.wait_for(waiting, 20)).out == "went\n"
            await inside.run(handle, "rm -f /tmp/go")

    # -- signals and time ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", ["TERM", "KILL", "INT", "USR1"])
    async def test_signals_between_programs_are_delivered(self, tmp_path: Path, name: str) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            script = f"set -m; sleep 60 & pid=$!; kill -{name} $pid; wait $pid; echo $?"
            numbers = {"TERM": 15, "KILL": 9, "INT": 2, "USR1": 10}
            done = await asyncio.wait_for(inside.run(handle, script), 20)
            assert done.out.strip() == str(128 + numbers[name])

    async def test_a_program_can_catch_a_signal(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            script = "trap 'echo caught; exit 3' TERM; kill -TERM $$; sleep 5"
            done = await asyncio.wait_for(inside.run(handle, script), 20)
            assert (done.code, done.out) == (3, "caught\n")

    async def test_a_user_cannot_signal_the_guest(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            done = await inside.run(handle, "kill -9 1; kill -TERM 1; echo tried", user="user")
            assert done.out == "tried\n"
            assert await inside.health(handle) == 204

    async def test_timeouts_inside_work(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            assert (await asyncio.wait_for(inside.run(handle, "timeout 0.3 sleep 30"), 20)).code == 124

    # -- files ---------------------------------------------------------------------------------------------------------

    async def test_what_is_written_is_read_again(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            script = (
                "mkdir -p /tmp/files/a && cd /tmp/files && head -c 3000000 /dev/urandom > one && cp one a/two && "
                "cmp one a/two && mv a/two three && cmp one three && ln -s three four && cmp one four && rm -r a three "
                "&& ls; rm -rf /tmp/files"
            )
            done = await inside.run(handle, script)
            assert done.out.split() == ["four", "one"], done

    async def test_directories_of_the_template_can_be_renamed_and_removed(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            script = (
                "mv /usr/share/doc /usr/share/papers && test ! -e /usr/share/doc && rm -r /usr/share/papers && echo ok"
            )
            assert (await inside.run(handle, script)).out == "ok\n"

    async def test_pipes_sockets_and_locks_work_on_the_root_file_system(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            script = (
                "cd /var/tmp && rm -f fifo lock sock && mkfifo fifo && (echo through >fifo &) && cat fifo && "
                'python3 -c \'import fcntl,socket as s; fcntl.flock(open("lock","w"),fcntl.LOCK_EX); '
                'l=s.socket(s.AF_UNIX); l.bind("sock"); l.listen(); c=s.socket(s.AF_UNIX); c.connect("sock"); '
                'print("joined")\'; rm -f fifo lock sock'
            )
            done = await asyncio.wait_for(inside.run(handle, script), 30)
            assert done.out.split() == ["through", "joined"], done

    async def test_the_template_itself_is_not_changed(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            assert (await inside.run(handle, "echo changed > /usr/contract-mark; cat /usr/contract-mark")).code == 0
            assert not any((layer / "usr" / "contract-mark").exists() for layer in self.layers())

    # -- users and rights ----------------------------------------------------------------------------------------------

    async def test_the_default_user_is_nobody_special(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            done = await inside.run(handle, "id -u; id -un; cat /etc/shadow; touch /usr/x; echo $HOME", user="user")
            assert done.out.split() == ["1000", "user", "/home/user"]
            assert done.err.count("ermission denied") == 2

    async def test_ownership_and_modes_hold(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            secret = "umask 077; echo secret > /tmp/secret; chown root:root /tmp/secret; stat -c '%u %a' /tmp/secret"
            assert (await inside.run(handle, secret)).out.split() == ["0", "600"]
            assert (await inside.run(handle, "cat /tmp/secret", user="user")).code != 0
            given = "chown user /tmp/secret; stat -c %U /tmp/secret"
            assert (await inside.run(handle, given)).out == "user\n"
            assert (await inside.run(handle, "cat /tmp/secret", user="user")).out == "secret\n"

    async def test_sudo_works_for_the_default_user(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            script = "sudo id -u; echo hi | sudo tee /etc/by-sudo; sudo -u user id -un; sudo sh -c 'exit 9'; echo $?"
            done = await asyncio.wait_for(inside.run(handle, script, user="user"), 30)
            assert done.out.split() == ["0", "hi", "user", "9"], done

    async def test_root_inside_cannot_make_devices_or_mounts(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            script = "mknod /tmp/disk b 8 0; echo $?; mount -t proc proc /mnt; echo $?"
            codes = (await inside.run(handle, script)).out.split()
            assert "0" not in codes, codes

    async def test_the_guests_socket_is_out_of_reach_inside(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            script = "find / -xdev -name guest.sock 2>/dev/null; ls /.atoll/io 2>/dev/null; echo looked"
            assert (await inside.run(handle, script)).out == "looked\n"

    # -- clean-up ------------------------------------------------------------------------------------------------------

    async def test_a_daemon_that_broke_all_ties_ends_with_the_sandbox(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            script = "setsid nohup bash -c 'trap \"\" TERM HUP; while :; do sleep 1; done' >/dev/null 2>&1 & echo left"
            assert (await inside.run(handle, script)).out == "left\n"
            await asyncio.wait_for(handle.kill(), 10)
            with pytest.raises(SandboxGone):
                await handle.stats()

    async def test_orphans_are_reaped(self, tmp_path: Path) -> None:
        async with self.sandbox(tmp_path) as (_, handle):
            await inside.run(handle, "for i in 1 2 3 4 5; do (sleep 0.05 & ); done")
            await asyncio.sleep(0.5)
            done = await inside.run(handle, "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z '; true")
            assert done.out.strip() == "0"

    @abstractmethod
    def layers(self) -> tuple[Path, ...]:
        """The layers of a template with bash, coreutils and python3, top first."""
