"""Files and directory watching through the published Python SDK, asynchronous flavour."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest
from e2b import AsyncSandbox, FileNotFoundException, FilesystemEvent, FilesystemEventType
from sdk_support import eventually_async

from support.tiers import one_tier

pytestmark = one_tier("the same requests as the synchronous client's, whose tests run in each tier")

MIB = 1024 * 1024


async def test_text_bytes_and_stream_come_back_as_written(async_sandbox: AsyncSandbox) -> None:
    files = async_sandbox.files
    data = os.urandom(3 * MIB)
    await files.write("note", "text é")
    await files.write("blob", data)
    assert await files.read("note") == "text é"
    assert bytes(await files.read("blob", format="bytes")) == data
    async with await files.read("blob", format="stream") as stream:
        assert b"".join([piece async for piece in stream]) == data


async def test_an_async_generator_is_streamed_in(async_sandbox: AsyncSandbox) -> None:
    async def pieces():
        for n in range(50):
            yield bytes([n]) * 20_000
            await asyncio.sleep(0)

    await async_sandbox.files.write("gen", pieces())
    data = bytes(await async_sandbox.files.read("gen", format="bytes"))
    assert data == b"".join(bytes([n]) * 20_000 for n in range(50))


async def test_a_hundred_megabytes_each_way(async_sandbox: AsyncSandbox) -> None:
    block = os.urandom(MIB)
    digest = hashlib.sha256()

    async def pieces():
        for n in range(100):
            piece = n.to_bytes(4, "big") + block[4:]
            digest.update(piece)
            yield piece

    await async_sandbox.files.write("big", pieces())
    result = await async_sandbox.commands.run("sha256sum < big")
    assert result.stdout.split()[0] == digest.hexdigest()
    back = hashlib.sha256()
    async for piece in await async_sandbox.files.read("big", format="stream"):
        back.update(piece)
    assert back.hexdigest() == digest.hexdigest()


async def test_the_directory_calls_agree_with_each_other(async_sandbox: AsyncSandbox) -> None:
    files = async_sandbox.files
    assert await files.make_dir("d") is True
    assert await files.make_dir("d") is False
    await files.write_files([{"path": f"d/{n}", "data": str(n)} for n in range(5)])
    assert sorted(entry.name for entry in await files.list("d")) == [str(n) for n in range(5)]
    assert (await files.rename("d/0", "d/zero")).name == "zero"
    assert await files.exists("d/zero")
    assert (await files.get_info("d/1")).size == 1
    await files.remove("d")
    assert not await files.exists("d")
    with pytest.raises(FileNotFoundException):
        await files.list("d")


async def test_a_watch_tells_create_write_chmod_rename_and_remove(async_sandbox: AsyncSandbox) -> None:
    await async_sandbox.files.make_dir("w")
    events: list[FilesystemEvent] = []
    handle = await async_sandbox.files.watch_dir("w", on_event=events.append)
    await async_sandbox.commands.run("cd w && echo 1 > a && chmod 600 a && mv a b && rm b")
    wanted = {
        ("a", FilesystemEventType.CREATE),
        ("a", FilesystemEventType.WRITE),
        ("a", FilesystemEventType.CHMOD),
        ("a", FilesystemEventType.RENAME),
        ("b", FilesystemEventType.REMOVE),
    }
    await eventually_async(lambda: wanted <= {(e.name, e.type) for e in events}, what=f"all of {wanted}")
    await handle.stop()


async def test_a_recursive_watch_sees_below_even_new_directories(async_sandbox: AsyncSandbox) -> None:
    await async_sandbox.files.make_dir("w/sub")
    events: list[FilesystemEvent] = []
    handle = await async_sandbox.files.watch_dir("w", on_event=events.append, recursive=True)
    await async_sandbox.files.write("w/sub/inner", "x")
    await eventually_async(lambda: "sub/inner" in {e.name for e in events}, what="an event for sub/inner")
    await async_sandbox.files.make_dir("w/fresh")
    await eventually_async(lambda: "fresh" in {e.name for e in events}, what="an event for fresh")
    await async_sandbox.files.write("w/fresh/inner", "x")
    await eventually_async(lambda: "fresh/inner" in {e.name for e in events}, what="an event for fresh/inner")
    await handle.stop()


async def test_a_plain_watch_does_not_see_below(async_sandbox: AsyncSandbox) -> None:
    await async_sandbox.files.make_dir("w/sub")
    events: list[FilesystemEvent] = []
    handle = await async_sandbox.files.watch_dir("w", on_event=events.append)
    await async_sandbox.files.write("w/sub/inner", "x")
    await async_sandbox.files.write("w/marker", "x")
    await eventually_async(lambda: "marker" in {e.name for e in events}, what="an event for marker")
    assert not [e for e in events if "inner" in e.name]
    await handle.stop()


async def test_a_watch_can_carry_the_entry(async_sandbox: AsyncSandbox) -> None:
    await async_sandbox.files.make_dir("w")
    events: list[FilesystemEvent] = []
    handle = await async_sandbox.files.watch_dir("w", on_event=events.append, include_entry=True)
    await async_sandbox.files.write("w/note", "12345")
    entry = await eventually_async(
        lambda: next((e.entry for e in events if e.entry and e.entry.size == 5), None), what="an event with its entry"
    )
    assert (entry.name, entry.path) == ("note", "/home/user/w/note")
    await handle.stop()


async def test_stopping_a_watch_ends_it_once_and_quietly(async_sandbox: AsyncSandbox) -> None:
    await async_sandbox.files.make_dir("w")
    events: list[FilesystemEvent] = []
    exits: list[Exception | None] = []
    handle = await async_sandbox.files.watch_dir("w", on_event=events.append, on_exit=exits.append)
    await async_sandbox.files.make_dir("w/early")
    await eventually_async(lambda: events, what="the watch hears")
    await handle.stop()
    await async_sandbox.files.write("w/late", "x")
    await asyncio.sleep(0.3)
    assert {event.name for event in events} == {"early"}
    assert exits == [None]


async def test_a_watch_ends_with_an_error_when_its_time_is_over(async_sandbox: AsyncSandbox) -> None:
    await async_sandbox.files.make_dir("w")
    exits: list[Exception | None] = []
    await async_sandbox.files.watch_dir("w", on_event=lambda event: None, on_exit=exits.append, timeout=1)
    await eventually_async(lambda: exits, what="the watch ended")
    assert isinstance(exits[0], Exception)


async def test_watching_nothing_is_not_found(async_sandbox: AsyncSandbox) -> None:
    with pytest.raises(FileNotFoundException):
        await async_sandbox.files.watch_dir("no-such", on_event=lambda event: None)
