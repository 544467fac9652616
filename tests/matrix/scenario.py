"""The core scenario with whatever versions of `e2b` and `e2b_code_interpreter` this interpreter has installed.

Prints one JSON line: {"steps": {name: "ok" | the error}}. Standard library and the SDKs only: it runs in their
environment. Only what every version since 2.7 has.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

from e2b import AsyncSandbox, Sandbox, SandboxQuery
from e2b_code_interpreter import Sandbox as Interpreter

TEXT = "schön \N{SNOWMAN}\n" * 1000
results: dict[str, str] = {}


def step(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Runs the function at once or later, and notes how it went."""

    def wrap(body: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            try:
                value = body(*args)
            except BaseException as error:
                results[name] = f"{type(error).__name__}: {error}"[:400]
                return None
            results[name] = "ok"
            return value

        return run

    return wrap


@step("create")
def create() -> Sandbox:
    return Sandbox.create(timeout=120, metadata={"matrix": "a b"}, envs={"WORD": "hello"})


@step("run")
def run(sandbox: Sandbox) -> None:
    seen: list[str] = []
    result = sandbox.commands.run('echo "$WORD"; echo err >&2', on_stdout=seen.append)
    assert (result.stdout, result.stderr, "".join(seen)) == ("hello\n", "err\n", "hello\n"), result
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.send_stdin(handle.pid, "typed")
    assert handle.pid in [process.pid for process in sandbox.commands.list()]
    assert handle.kill()


@step("files")
def files(sandbox: Sandbox) -> None:
    sandbox.files.write("a/b.txt", TEXT)
    assert sandbox.files.read("a/b.txt") == TEXT
    sandbox.files.make_dir("a/c")
    assert sorted(entry.name for entry in sandbox.files.list("a")) == ["b.txt", "c"]
    sandbox.files.rename("a/b.txt", "a/d.txt")
    assert sandbox.files.exists("a/d.txt")
    assert not sandbox.files.exists("a/b.txt")
    watch = sandbox.files.watch_dir("a")
    sandbox.files.remove("a/d.txt")
    assert any("d.txt" in event.name for event in watch.get_new_events())
    watch.stop()


@step("pty")
def pty(sandbox: Sandbox) -> None:
    from e2b import PtySize

    handle = sandbox.pty.create(PtySize(rows=20, cols=70))
    sandbox.pty.send_stdin(handle.pid, b"stty size; exit\n")
    out = bytearray()
    handle.wait(on_pty=out.extend)
    assert b"20 70" in out, bytes(out)


@step("list")
def listed(sandbox: Sandbox) -> None:
    found = Sandbox.list(SandboxQuery(metadata={"matrix": "a b"})).next_items()
    assert sandbox.sandbox_id in [item.sandbox_id for item in found]
    assert sandbox.get_info().metadata == {"matrix": "a b"}
    sandbox.set_timeout(200)
    assert Sandbox.connect(sandbox.sandbox_id).commands.run("true").exit_code == 0
    assert sandbox.is_running()


@step("kill")
def kill(sandbox: Sandbox) -> None:
    assert sandbox.kill()
    assert not sandbox.kill()


@step("code")
def code() -> None:
    sandbox = Interpreter.create(timeout=120)
    try:
        execution = sandbox.run_code("x = 6\nprint('printed')\nx * 7")
        assert execution.text == "42", execution
        assert execution.logs.stdout == ["printed\n"], execution
        context = sandbox.create_code_context()
        assert sandbox.run_code("1 / 0", context=context).error.name == "ZeroDivisionError"
    finally:
        sandbox.kill()


@step("async")
def asynchronous() -> None:
    async def main() -> None:
        sandbox = await AsyncSandbox.create(timeout=120)
        try:
            done = await asyncio.gather(*(sandbox.commands.run(f"echo {n}") for n in range(5)))
            assert [result.stdout for result in done] == [f"{n}\n" for n in range(5)]
            await sandbox.files.write("x", b"\x00\xff")
            assert bytes(await sandbox.files.read("x", format="bytes")) == b"\x00\xff"
        finally:
            await sandbox.kill()

    asyncio.run(main())


def main() -> int:
    sandbox = create()
    if sandbox is not None:
        for part in (run, files, pty, listed, kill):
            part(sandbox)
    code()
    asynchronous()
    print(json.dumps({"steps": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
