"""`atoll agent` as a user types it: real sandboxes, the real client library, an endpoint of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox

from support.tiers import one_tier

pytestmark = one_tier("a program over the runtime, whose actions are tested in each tier")

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "create-and-serve.json"
TRAJECTORIES = REPOSITORY.parent / "shared" / "trajectories"


class Endpoint(ThreadingHTTPServer):
    """Answers chat completions with what `answer` makes of the request; keeps the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[dict[str, Any]] = []
        self.answer: Callable[[dict[str, Any]], tuple[int, Any]] = lambda request: (500, {})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({**request, "authorization": self.headers["Authorization"]})
        status, body = self.server.answer(request)
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Silent."""


def completion(name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_0", "type": "function", "function": function}],
    }
    return {
        "id": "chatcmpl-x",
        "object": "chat.completion",
        "created": 1,
        "model": "stand-in",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def atoll(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "ATOLL_DATA_DIR": str(data_dir), "OPENAI_API_KEY": "k", "NO_COLOR": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "atoll", "agent", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, check=False)


def answers(request: dict[str, Any]) -> list[str]:
    return [str(message["content"]) for message in request["messages"] if message["role"] == "tool"]


def test_a_model_works_until_it_finishes_and_its_session_can_be_taken_up_again(
    server: Any, endpoint: Endpoint, tmp_path: Path
) -> None:
    steps = [
        completion("str_replace_editor", command="create", path="/workspace/hello.py", file_text="print(6 * 7)\n"),
        completion("execute_bash", command="cd /workspace && python3 hello.py && export LEFT=behind"),
        completion("think", thought="it works"),
    ]
    endpoint.answer = lambda request: (200, steps[len(answers(request))])
    log = tmp_path / "run.jsonl"
    base = ("--base-url", endpoint.url, "--max-steps")
    first = atoll(tmp_path, "Write 42.", "--model", "stand-in", "--session", str(log), *base, "3")
    assert first.returncode == 1, first.stderr
    assert "steps: 3 steps were made" in first.stdout
    assert "42\n" in answers(endpoint.requests[-1])[1]
    assert endpoint.requests[0]["authorization"] == "Bearer k"
    assert endpoint.requests[0]["messages"][1] == {"role": "user", "content": "Write 42."}

    rest = [
        completion("execute_bash", command="cat hello.py"),
        completion("finish", message="All is well."),
    ]
    endpoint.answer = lambda request: (200, rest[len(answers(request)) - 3])
    second = atoll(tmp_path, "--resume", str(log), "Go on.", *base, "9", "--json")
    assert second.returncode == 0, second.stderr
    found = json.loads(second.stdout)
    assert (found["end"], found["message"], found["steps"]) == ("finished", "All is well.", 5)
    assert found["usage"] == {"prompt_tokens": 500, "completion_tokens": 50}
    assert "print(6 * 7)" in answers(endpoint.requests[-1])[3]  # the same sandbox
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[0]["model"] == "stand-in"
    assert [line["id"] for line in lines[1:]] == list(range(len(lines) - 1))
    sandboxes = Sandbox.list().next_items()
    assert lines[0]["sid"] not in [info.metadata.get("atoll.sid") for info in sandboxes]


def test_a_session_whose_sandbox_is_gone_says_so_to_the_model(server: Any, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.answer = lambda request: (200, completion("execute_bash", command="echo one"))
    log = tmp_path / "run.jsonl"
    atoll(tmp_path, "x", "--model", "m", "--session", str(log), "--base-url", endpoint.url, "--max-tokens", "100")
    sid = json.loads(log.read_text().splitlines()[0])["sid"]
    for info in Sandbox.list().next_items():
        if info.metadata.get("atoll.sid") == sid:
            Sandbox.kill(info.sandbox_id)
    endpoint.answer = lambda request: (200, completion("finish", message="no"))
    again = atoll(tmp_path, "--resume", str(log), "--base-url", endpoint.url)
    assert again.returncode == 0, again.stderr
    assert "is gone" in endpoint.requests[-1]["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (401, {"error": {"message": "bad key"}}, "bad key"),
        (200, {"choices": []}, "no chat completion"),
        (200, [], "did not answer|no chat completion"),
    ],
)
def test_an_endpoint_that_fails_is_told_and_the_session_is_kept(
    server: Any, endpoint: Endpoint, tmp_path: Path, status: int, body: Any, text: str
) -> None:
    import re

    endpoint.answer = lambda request: (status, body)
    log = tmp_path / "run.jsonl"
    found = atoll(tmp_path, "x", "--model", "m", "--session", str(log), "--base-url", endpoint.url)
    assert found.returncode == 1
    assert re.search(text, found.stdout), found.stdout + found.stderr
    assert f"--resume {log}" in found.stdout.replace("\n", "")
    assert "Traceback" not in found.stderr


def test_wrong_usage_is_said_before_anything_is_made(tmp_path: Path) -> None:
    for arguments, text in (
        ((), "say what is to be done"),
        (("x",), "needs a model"),
        (("x", "--replay", str(EXAMPLE)), "no task of its own"),
        (("x", "--model", "m", "--budget", "1"), "prices"),
    ):
        found = atoll(tmp_path, *arguments)
        assert found.returncode in (1, 2)
        assert text in found.stderr
    assert not (tmp_path / "sessions").exists()


def test_a_replay_is_compared_with_its_record(server: Any, tmp_path: Path) -> None:
    log = tmp_path / "replay.jsonl"
    found = atoll(tmp_path, "--replay", str(EXAMPLE), "--session", str(log), "--json", "--soft-timeout", "1")
    assert found.returncode == 0, found.stderr
    rows = json.loads(found.stdout)["actions"]
    assert {row["verdict"] for row in rows} == {"equal"}
    assert len([line for line in log.read_text().splitlines() if '"observation":' in line]) == len(rows)


def test_a_replay_that_differs_says_how(server: Any, tmp_path: Path) -> None:
    run = [
        {"id": 0, "source": "agent", "action": "run", "args": {"command": "echo now"}},
        {
            "id": 1,
            "cause": 0,
            "observation": "run",
            "content": "then",
            "extras": {"command": "", "metadata": {"exit_code": 0}},
        },
        {"id": 2, "source": "agent", "action": "run", "args": {"command": "echo same"}},
        {
            "id": 3,
            "cause": 2,
            "observation": "run",
            "content": "same",
            "extras": {"command": "", "metadata": {"exit_code": 0}},
        },
    ]
    (tmp_path / "run.json").write_text(json.dumps(run))
    found = atoll(tmp_path, "--replay", str(tmp_path / "run.json"), "--json")
    assert found.returncode == 1
    rows = json.loads(found.stdout)["actions"]
    assert [row["verdict"] for row in rows] == ["differs", "equal"]
    assert rows[0]["difference"] == "output 'now', recorded 'then'"
