"""Tasks of an owner: held until they end, cancelled together, no failure unseen."""

from __future__ import annotations

import asyncio

from atoll.model.tasks import OwnedTasks


async def test_they_are_counted_while_they_run() -> None:
    tasks, go = OwnedTasks(), asyncio.Event()
    tasks.start(go.wait())
    assert len(tasks) == 1
    go.set()
    await tasks.wait()
    assert len(tasks) == 0


async def test_the_end_cancels_all_and_waits_for_what_they_still_do() -> None:
    tasks, done = OwnedTasks(), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            done.append(True)

    for _ in range(3):
        tasks.start(work())
    await asyncio.sleep(0)
    await tasks.aclose()
    await tasks.aclose()
    assert done == [True] * 3


async def test_a_failure_is_reported_and_a_cancelled_task_is_none() -> None:
    seen: list[BaseException] = []
    tasks = OwnedTasks(seen.append)

    async def fail() -> None:
        raise ValueError("why")

    tasks.start(fail())
    tasks.start(asyncio.sleep(60)).cancel()
    await tasks.wait()
    await asyncio.sleep(0)
    assert [str(error) for error in seen] == ["why"]


async def test_whoever_waits_may_give_up_without_ending_them() -> None:
    tasks, go = OwnedTasks(), asyncio.Event()
    tasks.start(go.wait())
    waiting = asyncio.create_task(tasks.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    assert len(tasks) == 1
    go.set()
    await tasks.wait()
