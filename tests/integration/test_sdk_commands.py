"""Commands through the published Python SDK, synchronous flavour."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from e2b import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    TimeoutException,
)
from sdk_support import command_lines, eventually, is_alive


def test_a_command_returns_its_output_and_exit_code(sandbox: Sandbox) -> None:
    result = sandbox.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code, result.error) == ("out\n", "err\n", 0, None)


@pytest.mark.parametrize("code", [1, 2, 42, 127, 255])
def test_a_failing_command_raises_with_its_code_and_keeps_its_output(sandbox: Sandbox, code: int) -> None:
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run(f"echo before; echo why >&2; exit {code}")
    assert caught.value.exit_code == code
    assert caught.value.stdout == "before\n"
    assert caught.value.stderr == "why\n"
    assert caught.value.error == f"exit status {code}"


def test_an_unknown_program_is_exit_127_not_a_platform_error(sandbox: Sandbox) -> None:
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("surely-no-such-program")
    assert caught.value.exit_code == 127
    assert "surely-no-such-program" in caught.value.stderr


def test_a_command_that_kills_itself_reports_the_signal(sandbox: Sandbox) -> None:
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("kill -9 $$")
    assert caught.value.exit_code != 0
    assert caught.value.error == "signal: killed"


def test_it_is_a_login_shell_of_the_default_user(sandbox: Sandbox) -> None:
    script = 'shopt -q login_shell && echo login; id -un; id -u; echo "$HOME $USER $LOGNAME"; pwd'
    lines = sandbox.commands.run(script).stdout.split("\n")
    assert lines[:5] == ["login", "user", "1000", "/home/user user user", "/home/user"]


def test_root_is_root_at_home(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("id -u; pwd; echo $HOME", user="root").stdout == "0\n/root\n/root\n"


def test_the_default_user_may_sudo_without_a_password(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("sudo -n id -u").stdout == "0\n"


def test_an_unknown_user_is_refused_by_name(sandbox: Sandbox) -> None:
    with pytest.raises(AuthenticationException, match="nobody-of-that-name"):
        sandbox.commands.run("true", user="nobody-of-that-name")


def test_envs_of_the_call_win_over_envs_of_the_sandbox(create) -> None:
    sandbox = create(envs={"COLOUR": "red", "SHAPE": "round"})
    assert sandbox.commands.run("echo $COLOUR $SHAPE").stdout == "red round\n"
    assert sandbox.commands.run("echo $COLOUR $SHAPE", envs={"COLOUR": "blue"}).stdout == "blue round\n"
    assert sandbox.commands.run("echo $COLOUR $SHAPE").stdout == "red round\n"


def test_awkward_env_values_arrive_unchanged(sandbox: Sandbox) -> None:
    value = "spaces  'quotes\" $dollar `tick` \\ back\nnewline é 🐚"
    assert sandbox.commands.run('printf %s "$AWKWARD"', envs={"AWKWARD": value}).stdout == value


def test_cwd_is_where_the_command_runs(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("pwd", cwd="/tmp").stdout == "/tmp\n"
    sandbox.files.make_dir("sub/dir")
    assert sandbox.commands.run("pwd", cwd="/home/user/sub/dir").stdout == "/home/user/sub/dir\n"


def test_a_missing_cwd_is_the_callers_mistake_and_is_named(sandbox: Sandbox) -> None:
    with pytest.raises(InvalidArgumentException, match="/no/such/dir"):
        sandbox.commands.run("pwd", cwd="/no/such/dir")


def test_callbacks_get_everything_in_order_while_it_runs(sandbox: Sandbox) -> None:
    out: list[str] = []
    err: list[str] = []
    result = sandbox.commands.run(
        "for i in 1 2 3; do echo o$i; echo e$i >&2; sleep 0.05; done", on_stdout=out.append, on_stderr=err.append
    )
    assert "".join(out) == result.stdout == "o1\no2\no3\n"
    assert "".join(err) == result.stderr == "e1\ne2\ne3\n"
    assert len(out) > 1, "the output arrived in one piece: it was buffered, not streamed"


def test_output_arrives_before_the_command_ends(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("echo ready; read line; echo got $line", background=True, stdin=True)
    events = iter(handle)
    first = next(events)
    assert first[0] == "ready\n"
    handle.send_stdin("go\n")
    assert "".join(piece[0] or "" for piece in events) == "got go\n"


def test_unicode_survives_in_command_and_output(sandbox: Sandbox) -> None:
    text = "žluťoučký kůň 🦄 日本語 \u202e"
    assert sandbox.commands.run(f"printf '%s' '{text}'").stdout == text


def test_bytes_that_are_no_text_become_replacement_characters_not_errors(sandbox: Sandbox) -> None:
    result = sandbox.commands.run("head -c 300000 /dev/urandom | tee /tmp/noise")
    noise = bytes(sandbox.files.read("/tmp/noise", format="bytes"))
    assert len(noise) == 300000
    assert result.stdout == noise.decode("utf-8", errors="replace")


def test_a_hundred_thousand_lines_arrive_complete_and_in_order(sandbox: Sandbox) -> None:
    result = sandbox.commands.run("seq 1 100000")
    assert result.stdout == "".join(f"{n}\n" for n in range(1, 100001))


def test_one_line_of_five_megabytes_arrives_complete(sandbox: Sandbox) -> None:
    result = sandbox.commands.run("head -c 5000000 /dev/zero | tr '\\0' x")
    assert result.stdout == "x" * 5_000_000


def test_output_that_is_not_retained_still_reaches_the_callback(sandbox: Sandbox) -> None:
    out: list[str] = []
    result = sandbox.commands.run("seq 1 1000", on_stdout=out.append, retain_output=False)
    assert result.stdout is None
    assert "".join(out).split() == [str(n) for n in range(1, 1001)]


def test_without_stdin_a_reader_sees_end_of_file(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("cat; echo done", timeout=20).stdout == "done\n"


def test_stdin_is_fed_by_the_handle_until_closed(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    handle.send_stdin("one\n")
    handle.send_stdin(b"two\n")
    handle.close_stdin()
    assert handle.wait().stdout == "one\ntwo\n"


def test_stdin_by_pid_is_the_same(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.send_stdin(handle.pid, "by pid\n")
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "by pid\n"


def test_a_stream_of_input_arrives_whole(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("sha256sum", background=True, stdin=True)
    pieces = [bytes([n % 256]) * 65536 for n in range(32)]
    sandbox.commands.stream_input(handle.pid, pieces)
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout.split()[0] == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_input_to_a_command_that_does_not_read_does_not_block_the_sandbox(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("sleep 86399", background=True, stdin=True)
    feeder = threading.Thread(target=lambda: _swallow(lambda: handle.send_stdin(b"x" * 1_000_000, request_timeout=3)))
    feeder.start()
    assert sandbox.commands.run("echo alive", timeout=20).stdout == "alive\n"
    handle.kill()
    feeder.join(timeout=30)
    assert not feeder.is_alive()


def test_input_for_an_unknown_pid_is_not_found(sandbox: Sandbox) -> None:
    with pytest.raises(NotFoundException):
        sandbox.commands.send_stdin(999_999, "x")
    with pytest.raises(NotFoundException):
        sandbox.commands.close_stdin(999_999)


def test_a_timeout_raises_and_ends_the_whole_tree(sandbox: Sandbox) -> None:
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 86398 & sleep 86397", timeout=1)
    eventually(
        lambda: not (is_alive(sandbox, "sleep 86398") or is_alive(sandbox, "sleep 86397")),
        what="both sleeps gone after the timeout",
    )


def test_timeout_zero_means_no_limit(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("sleep 0.3; echo slept", timeout=0).stdout == "slept\n"


def test_a_background_command_goes_on_beside_others(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("sleep 86396; echo never", background=True)
    assert sandbox.commands.run("echo beside").stdout == "beside\n"
    assert handle.pid in {p.pid for p in sandbox.commands.list()}
    assert handle.kill() is True
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert caught.value.error == "signal: killed"


def test_kill_ends_the_children_too(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("sleep 86395 & sleep 86394 & wait", background=True)
    eventually(lambda: is_alive(sandbox, "sleep 86394"), what="the children run")
    assert sandbox.commands.kill(handle.pid) is True
    eventually(
        lambda: not {"sleep 86395", "sleep 86394"} & set(command_lines(sandbox)), what="the children are gone too"
    )


def test_killing_what_is_not_there_is_false(sandbox: Sandbox) -> None:
    assert sandbox.commands.kill(999_999) is False
    handle = sandbox.commands.run("true", background=True)
    handle.wait()
    assert sandbox.commands.kill(handle.pid) is False


def test_what_a_finished_command_left_in_the_background_survives(sandbox: Sandbox) -> None:
    sandbox.commands.run("nohup sleep 86393 >/dev/null 2>&1 &")
    assert is_alive(sandbox, "sleep 86393")
    sandbox.commands.run("true")
    assert is_alive(sandbox, "sleep 86393")


def test_list_tells_what_runs_and_forgets_what_ended(sandbox: Sandbox) -> None:
    assert sandbox.commands.list() == []
    handle = sandbox.commands.run("sleep 86392", background=True, envs={"MARK": "7"}, cwd="/tmp")
    (process,) = sandbox.commands.list()
    assert process.pid == handle.pid
    assert (process.cmd, process.args) == ("/bin/bash", ["-l", "-c", "sleep 86392"])
    assert process.envs["MARK"] == "7"
    assert process.cwd == "/tmp"
    handle.kill()
    eventually(lambda: sandbox.commands.list() == [], what="the list is empty again")


def test_connect_joins_a_running_command(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("read line; echo heard $line; exit 5", background=True, stdin=True)
    handle.disconnect()
    again = sandbox.commands.connect(handle.pid)
    assert again.pid == handle.pid
    again.send_stdin("me\n")
    with pytest.raises(CommandExitException) as caught:
        again.wait()
    assert (caught.value.exit_code, caught.value.stdout) == (5, "heard me\n")


def test_disconnecting_leaves_the_command_running(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("sleep 86391", background=True)
    handle.disconnect()
    assert handle.pid in {p.pid for p in sandbox.commands.list()}
    assert is_alive(sandbox, "sleep 86391") or is_alive(sandbox, "/bin/bash -l -c sleep 86391")


def test_two_listeners_both_hear_the_end(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("read line; echo heard $line", background=True, stdin=True)
    second = sandbox.commands.connect(handle.pid)
    handle.send_stdin("x\n")
    assert handle.wait().stdout == "heard x\n"
    assert second.wait().exit_code == 0


def test_connect_to_an_unknown_pid_is_not_found(sandbox: Sandbox) -> None:
    with pytest.raises(NotFoundException):
        sandbox.commands.connect(999_999)


def test_commands_at_the_same_time_do_not_mix(sandbox: Sandbox) -> None:
    def one(n: int) -> str:
        return sandbox.commands.run(f"for i in 1 2 3 4 5; do echo {n}; done").stdout

    with ThreadPoolExecutor(16) as pool:
        outputs = list(pool.map(one, range(48)))
    assert outputs == [f"{n}\n" * 5 for n in range(48)]


def test_what_one_command_writes_the_next_one_reads(sandbox: Sandbox) -> None:
    sandbox.commands.run("echo kept > note")
    assert sandbox.commands.run("cat note").stdout == "kept\n"


def test_a_reader_that_stops_reading_stalls_only_its_own_command(sandbox: Sandbox) -> None:
    flood = sandbox.commands.run("yes | head -c 200000000", background=True, timeout=0)
    assert sandbox.commands.run("echo alive", timeout=30).stdout == "alive\n"
    assert flood.kill() is True
    flood.disconnect()


def _swallow(call) -> None:
    """The outcome does not matter here, only that the call returns."""
    with contextlib.suppress(Exception):
        call()
