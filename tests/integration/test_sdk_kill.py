"""A killed command or terminal ends with the signal for whoever waits for it: every time, so each rule is repeated."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from e2b import AsyncSandbox, CommandExitException, CommandHandle, PtySize, Sandbox
from e2b.sandbox_async.commands.command_handle import AsyncCommandHandle
from sdk_support import eventually, is_alive

SIZE = PtySize(rows=24, cols=80)
REPEATED = 12
KILLED = (-1, "signal: killed")
COMMANDS = {
    "a shell that goes on when its child dies": "sleep 1000; true",
    "children in pipes": "sleep 1000 | sleep 1001 | cat; true",
    "children in sessions of their own": "for i in 1 2 3 4; do setsid sleep 1000 & done; wait; true",
    "more output than anybody takes": "yes",
}
TYPED = {
    "a shell at its prompt": b"",
    "a shell that exits when its child dies": b"sleep 1000; exit 0\n",
    "a child that holds the terminal": b"nohup sleep 1000 & disown\n",
    "more output than anybody takes": b"yes\n",
}


def ending(handle: CommandHandle) -> tuple[int, str | None]:
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    return caught.value.exit_code, caught.value.error


async def ending_async(handle: AsyncCommandHandle) -> tuple[int, str | None]:
    with pytest.raises(CommandExitException) as caught:
        await asyncio.wait_for(handle.wait(), 60)
    return caught.value.exit_code, caught.value.error


@pytest.mark.parametrize("what", COMMANDS)
def test_a_killed_command_never_ends_as_if_it_had_ended_itself(sandbox: Sandbox, what: str) -> None:
    def one(_: int) -> tuple[int, str | None]:
        handle = sandbox.commands.run(COMMANDS[what], background=True)
        assert sandbox.commands.kill(handle.pid) is True
        return ending(handle)

    with ThreadPoolExecutor(4) as pool:
        assert Counter(pool.map(one, range(REPEATED))) == {KILLED: REPEATED}


@pytest.mark.parametrize("what", TYPED)
def test_a_killed_terminal_ends_a_wait_that_is_under_way(sandbox: Sandbox, what: str) -> None:
    with ThreadPoolExecutor(1) as waiting:
        for _ in range(REPEATED):
            handle = sandbox.pty.create(SIZE)
            if TYPED[what]:
                sandbox.pty.send_stdin(handle.pid, TYPED[what])
            end = waiting.submit(ending, handle)
            assert sandbox.pty.kill(handle.pid) is True
            assert end.result(60) == KILLED
            assert sandbox.pty.kill(handle.pid) is False


async def test_the_async_clients_waits_end_the_same(async_sandbox: AsyncSandbox) -> None:
    async def command(line: str) -> tuple[int, str | None]:
        handle = await async_sandbox.commands.run(line, background=True)
        end = asyncio.create_task(ending_async(handle))
        assert await async_sandbox.commands.kill(handle.pid) is True
        return await end

    async def terminal(typed: bytes) -> tuple[int, str | None]:
        handle = await async_sandbox.pty.create(SIZE, on_data=lambda data: None)
        if typed:
            await async_sandbox.pty.send_stdin(handle.pid, typed)
        end = asyncio.create_task(ending_async(handle))
        assert await async_sandbox.pty.kill(handle.pid) is True
        return await end

    for _ in range(REPEATED):
        started = [*map(command, [*COMMANDS.values()] * 3), *map(terminal, TYPED.values())]
        assert Counter(await asyncio.gather(*started)) == {KILLED: len(started)}


def test_the_end_of_a_command_that_was_left_and_killed_is_there_for_who_comes_back(sandbox: Sandbox) -> None:
    for _ in range(REPEATED):
        for handle in (sandbox.pty.create(SIZE), sandbox.commands.run("sleep 1000; true", background=True)):
            handle.disconnect()
            again = sandbox.commands.connect(handle.pid)
            assert again.kill() is True
            assert ending(again) == KILLED
            assert ending(sandbox.commands.connect(handle.pid)) == KILLED


async def test_a_command_can_be_killed_as_soon_as_it_is_listed(async_sandbox: AsyncSandbox) -> None:
    async def run() -> tuple[int, str | None]:
        return await ending_async(await async_sandbox.commands.run("sleep 1000; true", background=True))

    for _ in range(REPEATED):
        running = [asyncio.create_task(run()) for _ in range(3)]
        while not all(task.done() for task in running):
            for process in await async_sandbox.commands.list():
                await async_sandbox.commands.kill(process.pid)
        assert [task.result() for task in running] == [KILLED] * 3


def test_what_holds_a_killed_terminal_is_killed_with_it_and_what_has_left_it_is_not(sandbox: Sandbox) -> None:
    handle = sandbox.pty.create(SIZE)
    sandbox.pty.send_stdin(handle.pid, b"(setsid sleep 4321; true) & sleep 1234 &\nsetsid -f sleep 8765\n")
    for each in ("sleep 4321", "sleep 1234", "sleep 8765"):
        eventually(lambda each=each: is_alive(sandbox, each), what=f"{each} runs")
    sandbox.pty.kill(handle.pid)
    assert ending(handle) == KILLED
    eventually(lambda: not is_alive(sandbox, "sleep 1234"), what="the terminal's job is gone")
    eventually(lambda: not is_alive(sandbox, "sleep 4321"), what="the shell's child is gone")
    assert is_alive(sandbox, "sleep 8765")
