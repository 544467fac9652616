"""Commands through the published Python SDK, asynchronous flavour: what differs from the synchronous one."""

from __future__ import annotations

import asyncio

import pytest
from e2b import AsyncSandbox, CommandExitException, NotFoundException, SandboxException, TimeoutException
from sdk_support import eventually_async

from support.tiers import one_tier

pytestmark = one_tier("the same requests as the synchronous client's, whose tests run in each tier")


async def test_a_command_returns_its_output(async_sandbox: AsyncSandbox) -> None:
    result = await async_sandbox.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 0)


async def test_a_failing_command_raises_and_keeps_its_output(async_sandbox: AsyncSandbox) -> None:
    with pytest.raises(CommandExitException) as caught:
        await async_sandbox.commands.run("echo before; exit 9")
    assert (caught.value.exit_code, caught.value.stdout) == (9, "before\n")


async def test_plain_and_async_callbacks_get_everything(async_sandbox: AsyncSandbox) -> None:
    out: list[str] = []
    err: list[str] = []

    async def on_stderr(piece: str) -> None:
        err.append(piece)

    await async_sandbox.commands.run("seq 1 2000; seq 1 2000 >&2", on_stdout=out.append, on_stderr=on_stderr)
    expected = "".join(f"{n}\n" for n in range(1, 2001))
    assert "".join(out) == expected
    assert "".join(err) == expected


async def test_a_background_handle_shows_progress_and_the_end(async_sandbox: AsyncSandbox) -> None:
    handle = await async_sandbox.commands.run("echo ready; read line; echo got $line", background=True, stdin=True)
    await eventually_async(lambda: handle.stdout == "ready\n", what="output before the end")
    assert handle.exit_code is None
    await handle.send_stdin("go\n")
    assert (await handle.wait()).stdout == "ready\ngot go\n"
    assert handle.exit_code == 0


async def test_stdin_is_fed_until_closed(async_sandbox: AsyncSandbox) -> None:
    handle = await async_sandbox.commands.run("cat", background=True, stdin=True)
    await handle.send_stdin("one\n")
    await async_sandbox.commands.send_stdin(handle.pid, b"two\n")
    await handle.close_stdin()
    assert (await handle.wait()).stdout == "one\ntwo\n"


async def test_an_input_stream_keeps_order(async_sandbox: AsyncSandbox) -> None:
    handle = await async_sandbox.commands.run("cat", background=True, stdin=True)
    async with async_sandbox.commands.stream_input(handle.pid) as stream:
        for n in range(200):
            await stream.send(f"{n}\n")
    await handle.close_stdin()
    assert (await handle.wait()).stdout == "".join(f"{n}\n" for n in range(200))


async def test_an_input_stream_that_is_closed_has_sent_everything_and_leaves_stdin_open(
    async_sandbox: AsyncSandbox,
) -> None:
    handle = await async_sandbox.commands.run("cat", background=True, stdin=True)
    stream = async_sandbox.commands.stream_input(handle.pid)
    await stream.send("first ")
    await stream.close()
    await async_sandbox.commands.send_stdin(handle.pid, "second")
    await async_sandbox.commands.close_stdin(handle.pid)
    assert (await handle.wait()).stdout == "first second"


async def test_an_input_stream_to_nobody_says_so(async_sandbox: AsyncSandbox) -> None:
    stream = async_sandbox.commands.stream_input(999_999)
    await stream.send("x")
    with pytest.raises(NotFoundException):
        await stream.close()
    with pytest.raises((NotFoundException, SandboxException)):
        await stream.send("y")


async def test_a_timeout_raises_and_the_command_is_gone(async_sandbox: AsyncSandbox) -> None:
    with pytest.raises(TimeoutException):
        await async_sandbox.commands.run("sleep 86390", timeout=1)

    async def none_left() -> bool:
        return await async_sandbox.commands.list() == []

    await eventually_async(none_left, what="no command left after the timeout")


async def test_kill_connect_and_list(async_sandbox: AsyncSandbox) -> None:
    handle = await async_sandbox.commands.run("sleep 86389", background=True)
    await handle.disconnect()
    assert [p.pid for p in await async_sandbox.commands.list()] == [handle.pid]
    again = await async_sandbox.commands.connect(handle.pid)
    assert await again.kill() is True
    with pytest.raises(CommandExitException):
        await again.wait()
    assert await async_sandbox.commands.kill(handle.pid) is False


async def test_cancelling_the_caller_leaves_the_sandbox_usable(async_sandbox: AsyncSandbox) -> None:
    task = asyncio.create_task(async_sandbox.commands.run("sleep 86388", timeout=0))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await async_sandbox.commands.run("echo usable")).stdout == "usable\n"


async def test_fifty_commands_at_once_all_answer(async_sandbox: AsyncSandbox) -> None:
    results = await asyncio.gather(*(async_sandbox.commands.run(f"echo {n}") for n in range(50)))
    assert [r.stdout for r in results] == [f"{n}\n" for n in range(50)]


async def test_a_hundred_thousand_lines_arrive_complete(async_sandbox: AsyncSandbox) -> None:
    result = await async_sandbox.commands.run("seq 1 100000")
    assert result.stdout == "".join(f"{n}\n" for n in range(1, 100001))
