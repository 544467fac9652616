"""Sandboxes that wait started for a create (`--warm`): built, handed out, refilled and ended by a real server."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from e2b import Sandbox, Template, wait_for_port
from sdk_support import eventually

from support.tiers import SERVER_ENVIRON

pytestmark = pytest.mark.timeout(300)

TELL = "cat /tmp/began; hostname; cat /etc/machine-id; echo $E2B_SANDBOX_ID; head -c 8 /dev/urandom | od -An -tx1"


def _build(greeting: str, options: dict[str, Any]) -> None:
    program = f"date +%s.%N >/tmp/began; mkdir -p /tmp/www && cd /tmp/www && echo {greeting} >index.html"
    program += "; exec python3 -m http.server 8000"
    Template.build(Template().from_base_image().set_start_cmd(program, wait_for_port(8000)), "warmed", **options)


def test_a_create_gets_a_sandbox_whose_server_answers_already(tier: str, start_server: Callable[..., Any]) -> None:
    server = start_server(
        environ=SERVER_ENVIRON[tier], options=["--end-sandboxes", "--isolation", tier, "--warm", "warmed=1"]
    )

    def connection() -> dict[str, Any]:
        return {"api_key": server.api_key, "api_url": server.url, "sandbox_url": server.url}

    def ready() -> int:
        return int(server.log.read_text().count("warm.ready"))

    def places() -> set[str]:
        return {path.name for path in (server.data_dir / "sandboxes").iterdir() if not path.name.startswith(".")}

    def create(**more: Any) -> tuple[Sandbox, float]:
        before = time.time()
        return Sandbox.create("warmed", timeout=120, **more, **connection()), before

    def page(sandbox: Sandbox) -> str:
        routed = {"e2b-sandbox-id": sandbox.sandbox_id, "e2b-sandbox-port": "8000"}
        return httpx.get(server.url, headers=routed).text.strip()

    def told(sandbox: Sandbox) -> list[str]:
        return sandbox.commands.run(TELL).stdout.split("\n", 4)

    _build("one", connection())
    eventually(lambda: ready() >= 1, within_s=60, what="one waits")
    waiting = places()

    first, before = create(envs={"OF_THE_CALL": "yes"}, metadata={"a": "b"})
    assert page(first) == "one"
    assert {first.sandbox_id} == waiting, "the one that waited"
    began, hostname, machine_id, named, random = told(first)
    assert float(began) < before, "its server was started before the call"
    assert hostname == named == first.sandbox_id
    assert first.commands.run("echo $OF_THE_CALL").stdout == "yes\n"
    assert first.get_info().metadata == {"a": "b"}
    assert "start_cmd" in [process.tag for process in first.commands.list()]

    eventually(lambda: ready() >= 2, within_s=60, what="another waits")
    second, before = create(allow_internet_access=False)
    assert page(second) == "one"
    again = told(second)
    assert float(again[0]) < before
    assert (again[0] == began) == (tier == "gvisor"), "there it went on from the memory of the first"
    assert not {hostname, machine_id, random} & set(again)
    assert again[1] == again[3] == second.sandbox_id
    assert Sandbox.connect(second.sandbox_id, **connection()).commands.run("true").exit_code == 0

    other, before = create(metadata={"atoll.memory": "512"})
    assert float(told(other)[0]) > before, "one of another size is made when it is asked for"
    assert page(other) == "one"

    eventually(lambda: ready() >= 3, within_s=60, what="a third waits")
    _build("two", connection())
    eventually(lambda: ready() >= 4, within_s=60, what="one of the new build waits")
    third, before = create()
    assert page(third) == "two"
    assert float(told(third)[0]) < before
    for sandbox in (first, second, other):
        sandbox.kill()

    for count, role in ((6, "front"), (7, "node")):
        eventually(lambda count=count: ready() >= count - 1, within_s=60, what=f"one waits before {role} is killed")
        eventually(lambda: len(places()) == 2, within_s=30, what="and no other is there")
        left = places()
        os.kill(server.pid_of(role), signal.SIGKILL)
        eventually(lambda count=count: ready() >= count, within_s=60, what=f"one waits again without {role}")
        eventually(lambda: len(places()) == 2, within_s=30, what="and the earlier is gone")
        assert places() != left
    fourth, before = create()
    assert float(told(fourth)[0]) < before
    assert page(fourth) == "two"
    assert third.commands.run("true").exit_code == 0
    server.stop()
    assert places() == set()
