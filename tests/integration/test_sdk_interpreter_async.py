"""`run_code` and contexts through the published e2b_code_interpreter SDK, asynchronous flavour."""

from __future__ import annotations

import asyncio

import pytest
from e2b import NotFoundException, TimeoutException
from e2b_code_interpreter import AsyncSandbox, Result

from support.tiers import one_tier

pytestmark = one_tier("the same requests as the synchronous client's, whose tests run in each tier")


async def test_state_results_logs_and_errors(async_interpreter: AsyncSandbox) -> None:
    await async_interpreter.run_code("x = 41")
    execution = await async_interpreter.run_code("print('hello')\nx + 1")
    assert execution.text == "42"
    assert execution.logs.stdout == ["hello\n"]
    failed = await async_interpreter.run_code("x.nothing")
    assert failed.error is not None
    assert failed.error.name == "AttributeError"


async def test_plain_and_async_callbacks(async_interpreter: AsyncSandbox) -> None:
    lines: list[str] = []
    results: list[Result] = []

    async def on_result(result: Result) -> None:
        results.append(result)

    await async_interpreter.run_code(
        "for n in range(3): print(n)\n'end'", on_stdout=lambda message: lines.append(message.line), on_result=on_result
    )
    assert "".join(lines) == "0\n1\n2\n"
    assert [result.text for result in results] == ["end"]


async def test_contexts_run_beside_each_other_and_one_context_in_turn(async_interpreter: AsyncSandbox) -> None:
    one = await async_interpreter.create_code_context()
    two = await async_interpreter.create_code_context()
    meet = (
        "import pathlib, time\npathlib.Path('/tmp/{me}').touch()\ndeadline = time.time() + 30\n"
        "while not pathlib.Path('/tmp/{other}').exists() and time.time() < deadline: time.sleep(0.05)\n"
        "pathlib.Path('/tmp/{other}').exists()"
    )
    both = await asyncio.gather(
        async_interpreter.run_code(meet.format(me="a", other="b"), context=one),
        async_interpreter.run_code(meet.format(me="b", other="a"), context=two),
    )
    assert [execution.text for execution in both] == ["True", "True"], "the two contexts did not run side by side"
    await async_interpreter.run_code("log = []", context=one)
    await asyncio.gather(
        *(
            async_interpreter.run_code(
                f"log.append('in'); import time; time.sleep(0.05); log.append('out') # {n}", context=one
            )
            for n in range(5)
        )
    )
    assert (await async_interpreter.run_code("log == ['in', 'out'] * 5", context=one)).text == "True"


async def test_context_calls(async_interpreter: AsyncSandbox) -> None:
    context = await async_interpreter.create_code_context(cwd="/tmp")
    assert context.id in {c.id for c in await async_interpreter.list_code_contexts()}
    await async_interpreter.run_code("y = 1", context=context)
    await async_interpreter.restart_code_context(context)
    again = await async_interpreter.run_code("y", context=context)
    assert again.error is not None
    assert again.error.name == "NameError"
    await async_interpreter.remove_code_context(context)
    with pytest.raises(NotFoundException):
        await async_interpreter.run_code("1", context=context)


async def test_a_timeout_interrupts_and_the_kernel_goes_on(async_interpreter: AsyncSandbox) -> None:
    await async_interpreter.run_code("z = 'kept'")
    with pytest.raises(TimeoutException):
        await async_interpreter.run_code("import time\nwhile True: time.sleep(0.1)", timeout=2)
    assert (await async_interpreter.run_code("z", timeout=60)).text == "kept"


async def test_cancelling_the_caller_interrupts_the_cell(async_interpreter: AsyncSandbox) -> None:
    started = asyncio.Event()
    code = (
        "import time\ntry:\n    print('in', flush=True)\n    time.sleep(86384)\nexcept KeyboardInterrupt:\n    cut = 1"
    )
    task = asyncio.create_task(async_interpreter.run_code(code, timeout=0, on_stdout=lambda message: started.set()))
    await asyncio.wait_for(started.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await async_interpreter.run_code("cut", timeout=60)).text == "1"
