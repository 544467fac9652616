"""What a sandbox uses and what it logs, as the SDK and the REST interface tell it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from e2b import AsyncSandbox, Sandbox
from e2b_code_interpreter import Sandbox as Interpreter
from sdk_support import eventually

from support.receiver import LOOPBACK, receiver
from support.tiers import one_tier


def _get(server: Any, path: str, **query: Any) -> Any:
    response = httpx.get(f"{server.url}{path}", params=query, headers={"X-API-Key": server.api_key}, timeout=30)
    assert response.status_code == 200, response.text
    return response.json()


def _log(server: Any, sandbox: Sandbox, **query: Any) -> list[dict[str, Any]]:
    logs: list[dict[str, Any]] = _get(server, f"/v2/sandboxes/{sandbox.sandbox_id}/logs", **query)["logs"]
    return logs


def test_metrics_tell_what_is_used(server: Any, sandbox: Sandbox) -> None:
    before = datetime.now(UTC).timestamp() - 1
    sandbox.files.write("ballast", "x" * 8_000_000)
    first = sandbox.get_metrics()
    assert first
    assert first[-1].cpu_count > 0
    assert 0 < first[-1].mem_used <= first[-1].mem_total
    assert first[-1].disk_total > 0
    assert before <= first[-1].timestamp.timestamp()
    busy = sandbox.commands.run("head -c 300M /dev/zero | gzip >/dev/null; sleep 1.2")
    assert busy.exit_code == 0
    later = sandbox.get_metrics()
    assert len(later) > len(first)
    assert max(one.cpu_used_pct for one in later) > 5


@one_tier("kept and told by the control plane")
def test_metrics_are_taken_without_being_asked_for(server: Any, sandbox: Sandbox) -> None:
    time.sleep(11)
    readings = sandbox.get_metrics()
    assert len(readings) >= 3, readings
    moments = [one.timestamp for one in readings]
    assert moments == sorted(moments)
    later = sandbox.get_metrics(start=moments[1].replace(microsecond=0))
    assert 2 <= len(later) <= len(readings) + 1
    assert sandbox.get_metrics(end=datetime(2020, 1, 1, tzinfo=UTC)) == []


@one_tier("kept and told by the control plane")
def test_metrics_of_many_are_in_one_answer(server: Any, create: Any) -> None:
    one, two = create(), create()
    ids = f"{one.sandbox_id},{two.sandbox_id},i0000000000000000000"
    found = _get(server, "/sandboxes/metrics", sandbox_ids=ids)["sandboxes"]
    assert set(found) == {one.sandbox_id, two.sandbox_id}
    assert all(reading["memTotal"] > 0 for reading in found.values())


def test_what_commands_print_is_in_the_log(server: Any, sandbox: Sandbox) -> None:
    with pytest.raises(Exception, match="3"):
        sandbox.commands.run("echo out; echo err >&2; echo wörld; exit 3")
    told = [(one["level"], one["message"], one["fields"]["event_type"]) for one in _log(server, sandbox)]
    assert ("info", "echo out; echo err >&2; echo wörld; exit 3", "start") in told
    assert ("info", "out", "stdout") in told
    assert ("warn", "err", "stderr") in told
    assert ("info", "wörld", "stdout") in told
    assert ("warn", "exit status 3", "end") in told


def test_what_cells_print_and_fail_with_is_in_the_log(server: Any, interpreter: Interpreter) -> None:
    interpreter.run_code("import sys; print('from a cell'); print('careful', file=sys.stderr); 6 * 7")
    interpreter.run_code("1 / 0")
    log = [one for one in _log(server, interpreter) if one["fields"]["logger"] == "interpreter"]
    told = [(one["level"], one["message"], one["fields"]["event_type"]) for one in log]
    for expected in (
        ("info", "from a cell", "stdout"),
        ("warn", "careful", "stderr"),
        ("info", "done", "end"),
        ("info", "1 / 0", "start"),
        ("warn", "ZeroDivisionError: division by zero", "end"),
    ):
        assert expected in told
    assert {one["fields"]["language"] for one in log} == {"python"}
    assert "42" not in [message for _, message, _ in told]


@one_tier("kept and told by the control plane")
def test_the_log_is_read_by_level_search_direction_and_pages(server: Any, sandbox: Sandbox) -> None:
    sandbox.commands.run("for i in $(seq 20); do echo line $i; sleep 0.01; done; echo bad >&2")
    whole = _log(server, sandbox)
    lines = [one["message"] for one in whole if one["message"].startswith("line ")]
    assert lines == [f"line {number}" for number in range(1, 21)]
    assert {one["message"] for one in _log(server, sandbox, level="warn")} == {"bad"}
    assert [one["message"] for one in _log(server, sandbox, search="line 1", limit=2)] == ["line 1", "line 10"]
    back = _log(server, sandbox, direction="backward")
    assert sorted(map(json.dumps, back)) == sorted(map(json.dumps, whole))
    assert back[0]["timestamp"] >= back[-1]["timestamp"]
    middle = int(datetime.fromisoformat(whole[10]["timestamp"]).timestamp() * 1000) + 1
    after = _log(server, sandbox, cursor=middle)
    assert 0 < len(after) < len(whole)
    assert after[-1] == whole[-1]


@one_tier("kept and told by the control plane")
def test_the_first_versions_lines_are_what_the_command_line_prints(server: Any, sandbox: Sandbox) -> None:
    sandbox.commands.run("echo hello")
    answer = _get(server, f"/sandboxes/{sandbox.sandbox_id}/logs")
    lines = [json.loads(one["line"]) for one in answer["logs"]]
    assert {"level", "logger", "message"} <= set(lines[0])
    assert "hello" in [line["message"] for line in lines]
    assert len(answer["logEntries"]) == len(lines)


@one_tier("kept and told by the control plane")
def test_a_flood_is_left_out_of_the_log_and_reaches_the_client_whole(server: Any, sandbox: Sandbox) -> None:
    result = sandbox.commands.run("yes 0123456789abcde | head -c 32000000", timeout=60)
    assert len(result.stdout) == 32_000_000
    log = eventually(lambda: _log(server, sandbox, search="bytes of output were left out"), what="the note")
    assert log[0]["level"] == "warn"


@one_tier("kept and told by the control plane")
def test_the_log_outlives_its_sandbox(server: Any, create: Any) -> None:
    sandbox = create()
    sandbox.commands.run("echo last words")
    sandbox.kill()
    assert "last words" in [one["message"] for one in _log(server, sandbox)]


@one_tier("kept and told by the control plane")
def test_a_log_comes_as_it_is_written_without_anybody_asking(server: Any, sandbox: Sandbox) -> None:
    sandbox.commands.run("sleep 1.3; echo by itself")
    file = server.data_dir / "control" / "logs" / f"{sandbox.sandbox_id}.jsonl"
    eventually(lambda: file.exists() and "by itself" in file.read_text(), what="the entry is on disk")


def test_logs_and_events_survive_a_restart(start_server: Any) -> None:
    running = start_server()
    sandbox = Sandbox.create(api_key=running.api_key, api_url=running.url, sandbox_url=running.url)
    sandbox.commands.run("echo before")
    assert "before" in [one["message"] for one in _log(running, sandbox)]
    running.stop()
    running.start()
    again = Sandbox.connect(sandbox.sandbox_id, api_key=running.api_key, api_url=running.url, sandbox_url=running.url)
    again.commands.run("echo after")
    messages = [one["message"] for one in _log(running, sandbox)]
    assert messages.count("before") == 1
    assert messages.count("after") == 1
    again.kill()
    events = _get(running, f"/events/sandboxes/{sandbox.sandbox_id}", orderAsc="true")
    assert [one["type"].rpartition(".")[2] for one in events][:1] == ["created"]


def test_metrics_survive_a_server_that_is_killed(start_server: Any) -> None:
    running = start_server()
    sandbox = Sandbox.create(api_key=running.api_key, api_url=running.url, sandbox_url=running.url)
    before = eventually(
        lambda: (found := sandbox.get_metrics()) and len(found) >= 2 and found, what="two readings", within_s=60
    )
    running.kill()
    running.start()
    again = Sandbox.connect(sandbox.sandbox_id, api_key=running.api_key, api_url=running.url, sandbox_url=running.url)
    moments = [one.timestamp for one in again.get_metrics()]
    assert moments[: len(before)] == [one.timestamp for one in before]
    assert len(moments) > len(before)
    again.kill()
    assert not list((running.data_dir / "control" / "metrics").iterdir())


async def test_a_webhook_hears_of_a_real_sandbox(start_server: Any) -> None:
    running = await asyncio.to_thread(start_server, {"ATOLL_WEBHOOK_ALLOW_PRIVATE": ",".join(LOOPBACK)})
    keys = {"api_key": running.api_key, "api_url": running.url, "sandbox_url": running.url}
    async with receiver(500, 200) as target, httpx.AsyncClient(headers={"X-API-Key": running.api_key}) as client:
        hook = {
            "name": "test",
            "url": target.url,
            "events": ["sandbox.lifecycle.created", "sandbox.lifecycle.killed"],
            "signatureSecret": "secret",
        }
        made = await client.post(f"{running.url}/events/webhooks", json=hook)
        assert made.status_code == 201, made.text
        sandbox = await AsyncSandbox.create(**keys)
        await sandbox.kill()
        await target.wait_for(3)  # the first answer was 500, so that one of them comes again
        assert {one["sandboxId"] for one in target.bodies} == {sandbox.sandbox_id}
        assert set(target.types) == {"sandbox.lifecycle.created", "sandbox.lifecycle.killed"}


def test_the_operator_reads_the_servers_own_figures(server: Any, create: Any, tier: str) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    def read(key: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        answer = httpx.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {key}"})
        assert answer.headers["content-type"].startswith("text/plain")
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }

    def delta(name: str, **labels: str) -> float:
        place = (name, tuple(sorted(labels.items())))
        return after[place] - before.get(place, 0)

    before = read(server.api_key)
    create().kill()
    create()
    assert httpx.get(f"{server.url}/no/such/place", headers={"x-api-key": server.api_key}).status_code == 404
    after = read(server.api_key)
    route = "/v2/sandboxes"
    assert delta("atoll_request_seconds_count", method="POST", route=route, status="201") == 2
    assert delta("atoll_request_seconds_count", method="GET", route="other", status="404") == 1
    assert delta("atoll_create_step_seconds_count", step="node", tier=tier) == 2
    assert delta("atoll_sandbox_events_total", type="created") == 2
    assert delta("atoll_sandbox_events_total", type="killed") == 1
    assert after["atoll_sandboxes", (("state", "running"),)] >= 1
    assert after["atoll_nodes", (("state", "ready"),)] == 1
    assert httpx.get(f"{server.url}/metrics").status_code == 401

    # Another team's key reads nothing of the machine's.
    made = subprocess.run(
        [sys.executable, "-m", "atoll", "team", "create", f"figures-{tier}", "--json", "--data-dir", server.data_dir],
        capture_output=True,
        check=True,
    )
    answer = httpx.get(f"{server.url}/metrics", headers={"x-api-key": json.loads(made.stdout)["api_key"]})
    assert (answer.status_code, "of all teams" in answer.text) == (403, True)
