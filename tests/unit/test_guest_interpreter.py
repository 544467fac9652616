"""The code interpreter on the guest's side of the wire: real HTTP in front, a small kernel of the tests' own behind.

What a real Python kernel does is tested through the SDK in `tests/integration/test_sdk_interpreter*.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from atoll.guest.interpreter import contexts, kernel, output
from atoll.guest.interpreter.service import Interpreter
from atoll.guest.pid1.reaper import Reaper
from atoll.guest.process.users import User, Users
from atoll.guest.state import GuestState
from atoll.http1.server import HttpConnection
from atoll.model.sandbox import SandboxSpec

FAKE_KERNEL = Path(__file__).with_name("_fake_kernel.py")

Execute = Callable[..., Awaitable[list[dict[str, Any]]]]


def install(home: Path, name: str, argv: list[str]) -> None:
    folder = home / ".local/share/jupyter/kernels" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": name, "language": "python"}))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    install(tmp_path, "python3", [sys.executable, str(FAKE_KERNEL), "{connection_file}"])
    install(tmp_path, "broken", [sys.executable, "-c", "raise SystemExit('no such module: xyz')"])
    install(tmp_path, "absent", ["/no/such/program"])
    install(tmp_path, "mute", [sys.executable, "-c", "import time; time.sleep(999)"])
    return tmp_path


@asynccontextmanager
async def serving(home: Path, *, token: str | None = None) -> AsyncIterator[tuple[Interpreter, httpx.AsyncClient]]:
    loop = asyncio.get_running_loop()
    user = User("user", os.getuid(), os.getgid(), (os.getgid(),), str(home), "/bin/bash")
    config = SandboxSpec("sandboxid", "t", env_vars={"GLOBAL": "g"}, access_token=token, interpreter=True)
    state = GuestState(config, Users(fixed={"user": user}))
    reaper = Reaper(loop)
    reaper.start()
    interpreter = Interpreter(state, reaper, str(home / "run"))
    server = await loop.create_server(lambda: HttpConnection(interpreter.handle, loop), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield interpreter, client
    finally:
        server.close()
        for context in interpreter.contexts.all():
            interpreter.contexts.remove(context.id)
        await asyncio.sleep(0.05)


@pytest_asyncio.fixture
async def client(home: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(home) as (_, client):
        yield client


async def execute(client: httpx.AsyncClient, code: str, **more: Any) -> list[dict[str, Any]]:
    answer = await client.post("/execute", json={"code": code, **more})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def kinds(lines: list[dict[str, Any]]) -> list[str]:
    return [line["type"] for line in lines]


def text_of(lines: list[dict[str, Any]]) -> str:
    return "".join(line["text"] for line in lines if line["type"] == "stdout")


def count_of(lines: list[dict[str, Any]]) -> int:
    return next(line["execution_count"] for line in lines if line["type"] == "number_of_executions")


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


# ------------------------------------------------------------------------------------------------------------ the rules


async def test_health_is_plain_ok(client: httpx.AsyncClient) -> None:
    answer = await client.get("/health")
    assert (answer.status_code, answer.text) == (200, "OK")


async def test_a_cell_streams_its_lines_and_ends_with_end_of_execution(client: httpx.AsyncClient) -> None:
    lines = await execute(client, "echo hello")
    assert kinds(lines) == ["number_of_executions", "stdout", "end_of_execution"]
    assert lines[0]["execution_count"] == 1
    assert lines[1]["text"] == "hello"
    assert isinstance(lines[1]["timestamp"], int)
    assert (await execute(client, "echo again"))[0]["execution_count"] == 2


async def test_output_arrives_while_the_cell_runs(client: httpx.AsyncClient) -> None:
    async with client.stream("POST", "/execute", json={"code": "wait"}) as response:
        lines = response.aiter_lines()
        assert json.loads(await anext(lines))["type"] == "number_of_executions"
        assert json.loads(await anext(lines))["text"] == "waiting"


async def test_leaving_interrupts_the_cell_and_the_context_goes_on(client: httpx.AsyncClient) -> None:
    async with client.stream("POST", "/execute", json={"code": "wait"}) as response:
        async for line in response.aiter_lines():
            if json.loads(line)["type"] == "stdout":
                break
    assert text_of(await execute(client, "echo next")) == "next"


async def test_a_cell_that_swallows_the_interrupt_is_interrupted_again(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "_INTERRUPT_AGAIN_S", 0.05)
    async with client.stream("POST", "/execute", json={"code": "stubborn 2"}) as response:
        async for line in response.aiter_lines():
            if json.loads(line)["type"] == "stdout":
                break
    assert text_of(await execute(client, "echo next")) == "next"


async def test_cells_of_one_context_wait_for_each_other(client: httpx.AsyncClient) -> None:
    results = await asyncio.gather(*(execute(client, f"late {n}") for n in range(3)))
    assert sorted(lines[0]["execution_count"] for lines in results) == [1, 2, 3]
    assert [text_of(lines) for lines in results] == ["0", "1", "2"]


async def test_contexts_run_side_by_side(client: httpx.AsyncClient) -> None:
    one, two = [(await client.post("/contexts", json={})).json()["id"] for _ in range(2)]
    async with client.stream("POST", "/execute", json={"code": "wait", "context_id": one}) as response:
        await anext(response.aiter_lines())
        assert text_of(await execute(client, "echo free", context_id=two)) == "free"


async def test_who_leaves_the_queue_disturbs_nobody(client: httpx.AsyncClient) -> None:
    first = asyncio.create_task(execute(client, "late first"))
    await asyncio.sleep(0.1)
    second = asyncio.create_task(execute(client, "echo second"))
    await asyncio.sleep(0.05)
    second.cancel()
    assert text_of(await first) == "first"
    assert (await execute(client, "echo third"))[0]["execution_count"] == 2


async def test_a_quiet_cell_is_kept_alive(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "KEEPALIVE_S", 0.05)
    lines = await execute(client, "late x")
    assert "keepalive" in kinds(lines)
    assert kinds(lines)[-1] == "end_of_execution"


async def test_a_kernel_that_dies_says_so_and_the_next_cell_has_a_fresh_one(client: httpx.AsyncClient) -> None:
    await execute(client, "echo 1")
    lines = await execute(client, "die")
    assert kinds(lines)[-2:] == ["error", "end_of_execution"]
    assert lines[-2]["name"] == "KernelDied"
    assert "exited with code 3" in lines[-2]["value"]
    assert count_of(await execute(client, "echo 1")) == 1


async def test_the_first_cell_of_a_fresh_kernel_is_told_what_became_of_the_old_one(client: httpx.AsyncClient) -> None:
    pid = int(text_of(await execute(client, "pid")))
    watched = os.pidfd_open(pid)
    os.kill(pid, 9)
    await asyncio.to_thread(select.select, [watched], [], [])
    os.close(watched)
    lines = await execute(client, "echo alive")
    (note,) = [line["text"] for line in lines if line["type"] == "stderr"]
    assert "SIGKILL" in note
    assert "variables of earlier cells are lost" in note
    assert text_of(lines) == "alive"
    assert "stderr" not in kinds(await execute(client, "echo again"))


async def test_a_restart_that_was_asked_for_is_no_news(client: httpx.AsyncClient) -> None:
    await execute(client, "echo")
    (default,) = (await client.get("/contexts")).json()
    await client.post(f"/contexts/{default['id']}/restart")
    assert "stderr" not in kinds(await execute(client, "echo"))


async def test_a_value_that_is_published_after_the_end_is_not_lost(client: httpx.AsyncClient) -> None:
    values = [line["text"] for line in await execute(client, "afterwards 42") if line["type"] == "result"]
    assert values == ["42"]


async def test_an_error_that_only_the_reply_tells_is_an_error(client: httpx.AsyncClient) -> None:
    (error,) = [line for line in await execute(client, "unparsed") if line["type"] == "error"]
    assert error["name"] == "SyntaxError"


async def test_a_kernel_killed_from_outside_is_noticed_at_once(client: httpx.AsyncClient) -> None:
    pid = int(text_of(await execute(client, "pid")))
    running = asyncio.create_task(execute(client, "wait"))
    await asyncio.sleep(0.2)
    os.kill(pid, 9)
    assert "SIGKILL" in (await running)[-2]["value"]


async def test_a_kernel_that_closes_its_connection_is_as_good_as_dead(client: httpx.AsyncClient) -> None:
    lines = await execute(client, "cut")
    assert lines[-2]["name"] == "KernelDied"
    assert text_of(await execute(client, "echo back")) == "back"


async def test_garbage_from_a_kernel_is_passed_over(client: httpx.AsyncClient) -> None:
    assert text_of(await execute(client, "noise heard")) == "heard"


async def test_a_lost_end_does_not_hang_the_cell(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_IDLE_GRACE_S", 0.1)
    assert text_of(await execute(client, "no-idle done")) == "done"


async def test_output_for_a_slow_reader_is_complete_and_bounded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "BUFFERED_BYTES", 64 * 1024)
    largest = 0
    put = contexts.Output.put

    def watched(self: contexts.Output, line: Any) -> None:
        nonlocal largest
        put(self, line)
        largest = max(largest, self._size)

    monkeypatch.setattr(contexts.Output, "put", watched)
    async with serving(home) as (_, client):
        size = 0
        async with client.stream("POST", "/execute", json={"code": "flood 20000"}) as response:
            async for chunk in response.aiter_bytes():
                size += len(chunk)
                await asyncio.sleep(0.0005)
    assert size > 20000 * 1024
    assert largest < 4 * 1024 * 1024


async def test_contexts_are_made_listed_restarted_and_removed(client: httpx.AsyncClient, home: Path) -> None:
    made = (await client.post("/contexts", json={"cwd": str(home / ".local")})).json()
    assert made == {"id": made["id"], "language": "python", "cwd": str(home / ".local")}
    assert (await client.get("/contexts")).json() == [made]
    await execute(client, "echo", context_id=made["id"])
    assert (await client.post(f"/contexts/{made['id']}/restart")).status_code == 204
    assert (await execute(client, "echo", context_id=made["id"]))[0]["execution_count"] == 1
    assert (await client.delete(f"/contexts/{made['id']}")).status_code == 204
    assert (await client.get("/contexts")).json() == []
    answer = await client.post("/execute", json={"code": "echo", "context_id": made["id"]})
    assert (answer.status_code, answer.text) == (404, f"Context {made['id']} not found")


async def test_a_removed_context_ends_what_runs_and_what_waits_in_it(client: httpx.AsyncClient) -> None:
    context = (await client.post("/contexts", json={})).json()["id"]
    running = asyncio.create_task(execute(client, "wait", context_id=context))
    await asyncio.sleep(0.2)
    waiting = asyncio.create_task(execute(client, "echo", context_id=context))
    await asyncio.sleep(0.1)
    await client.delete(f"/contexts/{context}")
    assert "removed" in (await running)[-2]["value"]
    assert (await waiting)[-2]["name"] == "ContextRemoved"


async def test_removing_the_default_context_makes_way_for_a_new_one(client: httpx.AsyncClient) -> None:
    await execute(client, "echo")
    (default,) = (await client.get("/contexts")).json()
    await client.delete(f"/contexts/{default['id']}")
    assert (await execute(client, "echo"))[0]["execution_count"] == 1


async def test_a_kernel_that_cannot_start_is_an_error_with_its_own_words(client: httpx.AsyncClient) -> None:
    lines = await execute(client, "x", language="broken")
    assert lines[-2]["name"] == "KernelStartFailed"
    assert "exited with code 1" in lines[-2]["value"]
    assert "no such module: xyz" in lines[-2]["value"]
    answer = await client.post("/contexts", json={"language": "broken"})
    assert answer.status_code == 500
    assert "no such module: xyz" in answer.text
    assert "/no/such/program" in (await execute(client, "x", language="absent"))[-2]["value"]


async def test_a_kernel_that_never_answers_is_given_up(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "START_TIMEOUT_S", 0.5)
    assert "not ready" in (await execute(client, "x", language="mute"))[-2]["value"]


async def test_a_context_whose_kernel_did_not_start_is_not_kept(client: httpx.AsyncClient) -> None:
    await client.post("/contexts", json={"language": "broken"})
    await client.post("/contexts", json={"cwd": "/no/such/folder"})
    assert (await client.get("/contexts")).json() == []


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"code": "1", "context_id": "x", "language": "python"}, 400, "Only one of"),
        ({"code": "1", "context_id": "nope"}, 404, "Context nope not found"),
        ({"code": "1", "language": "klingon"}, 400, "'klingon' is not available.*absent, bash, broken, mute, python3"),
        ({"code": "1", "language": "../../etc"}, 400, "not available"),
        ({"code": "1", "language": 7}, 400, "language"),
        ({"code": 1}, 400, "code"),
        ({}, 400, "code"),
        ([], 400, "object"),
        ({"code": "1", "env_vars": {"A": 1}}, 400, "env_vars"),
        ({"code": "1", "env_vars": {"A B": "1"}}, 400, "env_vars"),
        ({"code": "1", "env_vars": {"A": "\0"}}, 400, "env_vars"),
    ],
)
async def test_a_wrong_request_is_refused_with_the_reason(
    client: httpx.AsyncClient, body: Any, status: int, says: str
) -> None:
    answer = await client.post("/execute", json=body)
    assert answer.status_code == status
    assert __import__("re").search(says, answer.text), answer.text


async def test_malformed_json_and_unknown_paths_are_refused(client: httpx.AsyncClient) -> None:
    assert (await client.post("/execute", content=b"{")).status_code == 400
    assert (await client.post("/execute", content=b"[" * 100_000)).status_code == 400
    assert (await client.get("/execute")).status_code == 405
    assert (await client.get("/nothing")).status_code == 404
    assert (await client.delete("/contexts/nope")).status_code == 404


async def test_a_cwd_that_does_not_exist_is_named(client: httpx.AsyncClient) -> None:
    answer = await client.post("/contexts", json={"cwd": "/no/such/folder"})
    assert answer.status_code == 400
    assert "/no/such/folder" in answer.text


async def test_contexts_have_a_limit(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "MAX_CONTEXTS", 1)
    assert (await client.post("/contexts", json={})).status_code == 200
    answer = await client.post("/contexts", json={})
    assert (answer.status_code, "at most 1" in answer.text) == (429, True)


async def test_execute_needs_the_access_token_where_there_is_one(home: Path) -> None:
    async with serving(home, token="secret") as (_, client):
        for headers in ({}, {"X-Access-Token": "wrong"}, {"X-Access-Token": "secret\xff"}):
            sent = {name: value.encode("latin-1") for name, value in headers.items()}
            assert (await client.post("/execute", json={"code": "echo"}, headers=sent)).status_code == 401
        right = {"X-Access-Token": "secret"}
        assert (await client.post("/execute", json={"code": "echo"}, headers=right)).status_code == 200
        assert (await client.get("/contexts")).status_code == 200


async def test_nothing_of_a_kernel_is_left_when_it_is_gone(home: Path) -> None:
    async with serving(home) as (_, client):
        await execute(client, "pid")  # the default context's kernel and the client's connection stay open
        before = len(os.listdir("/proc/self/fd"))
        pids = []
        for _ in range(3):
            context = (await client.post("/contexts", json={})).json()["id"]
            pids.append(int(text_of(await execute(client, "pid", context_id=context))))
            await client.delete(f"/contexts/{context}")
        await execute(client, "x", language="broken")
        for _ in range(100):
            if not alive(pids):
                break
            await asyncio.sleep(0.02)
        assert alive(pids) == []
        assert len(os.listdir(home / "run")) == 1, "the connection file of the default context's kernel"
        assert len(os.listdir("/proc/self/fd")) == before
