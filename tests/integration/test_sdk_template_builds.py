"""Templates built by the published SDK, on a real server, used by real sandboxes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import traceback
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from e2b import (
    AsyncSandbox,
    AsyncTemplate,
    BuildException,
    LogEntry,
    Sandbox,
    SandboxException,
    Template,
    wait_for_file,
    wait_for_port,
    wait_for_process,
    wait_for_timeout,
    wait_for_url,
)
from sdk_support import eventually

from support.tiers import one_tier

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def name() -> str:
    """A name that no other test builds."""
    return f"t{uuid4().hex[:12]}"


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """What a build copies from."""
    (tmp_path / "app" / "sub").mkdir(parents=True)
    (tmp_path / "app" / "main.py").write_text("print('main')\n")
    (tmp_path / "app" / "sub" / "deep").write_text("deep")
    (tmp_path / "app" / "link").symlink_to("main.py")
    for letter in "ab":
        (tmp_path / f"{letter}.txt").write_text(letter)
    (tmp_path / "two words").write_text("spaces")
    return tmp_path


def _log(entries: list[LogEntry]) -> Callable[[LogEntry], None]:
    return entries.append


def _said(entries: list[LogEntry], pattern: str) -> list[str]:
    return [entry.message for entry in entries if re.search(pattern, entry.message)]


def _client(server: Any) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"X-API-Key": server.api_key}, timeout=30)


def test_every_kind_of_step_is_in_the_sandboxes_of_the_template(
    server: Any, name: str, context: Path, create: Callable[..., Sandbox]
) -> None:
    builder = (
        Template(file_context_path=context)
        .from_base_image()
        .set_envs({"GREETING": "hello $USER", "PATH": "/opt/tool/bin:$PATH", "LITERAL": "$(id) `id` 'q'"})
        .copy("app", "/srv/app")
        .copy("*.txt", "texts/", mode=0o640)
        .copy("two words", "renamed here", user="root")
        .run_cmd("id -un; echo $GREETING >made; echo to-stderr >&2")
        .run_cmd("rm /etc/issue && echo root-made >/opt/root-made", user="root")
        .set_workdir("/work/inner")
        .run_cmd("pwd >where && touch $PWD/own")
        .set_user("dev")
        .set_start_cmd("python3 -m http.server 8000", wait_for_port(8000))
    )
    entries: list[LogEntry] = []
    info = Template.build(builder, name, cpu_count=1, memory_mb=512, on_build_logs=_log(entries))
    assert _said(entries, "^user$")
    assert _said(entries, "^to-stderr$")
    assert Template.exists(name)
    assert Template.assign_tags(name, "first").tags == ["first"]
    assert {tag.tag: tag.build_id for tag in Template.get_tags(name)} == dict.fromkeys(
        ("default", "first"), info.build_id
    )
    Template.remove_tags(name, "first")
    assert [tag.tag for tag in Template.get_tags(info.template_id)] == ["default"]

    sandbox = create(name)
    run = sandbox.commands.run
    # The create has waited for the start command.
    assert "<!DOCTYPE" in run("curl -s localhost:8000").stdout
    assert run("id -un; pwd; echo $GREETING; echo $LITERAL").stdout == (
        "dev\n/work/inner\nhello user\n$(id) `id` 'q'\n"
    )
    assert run("echo $PATH").stdout.startswith("/opt/tool/bin:/usr/local/sbin:")
    assert run("cat /home/user/made", user="root").stdout == "hello user\n"
    assert run("cat /work/inner/where; stat -c %U /work /work/inner/own").stdout == "/work/inner\nuser\nuser\n"
    assert run("cd /srv/app && cat sub/deep && readlink link && stat -c %U main.py").stdout == "deepmain.py\nuser\n"
    assert run("stat -c '%a %U' /home/user/texts/*.txt", user="root").stdout == "640 user\n640 user\n"
    assert run("stat -c %U '/home/user/renamed here'", user="root").stdout == "root\n"
    assert run("test ! -e /etc/issue && cat /opt/root-made").stdout == "root-made\n"
    # Nothing of the sandboxes that built it is left in it.
    assert run("cat /run/e2b/.E2B_SANDBOX_ID /etc/hostname").stdout.split() in (
        [sandbox.sandbox_id] * 2,
        [sandbox.sandbox_id * 2],
    )
    facts = sandbox.get_info()
    assert (facts.template_id, facts.cpu_count, facts.memory_mb) == (info.template_id, 1, 512)


@one_tier("decided by the control plane")
def test_a_step_that_was_run_with_the_same_inputs_is_not_run_again(
    server: Any, name: str, context: Path, create: Callable[..., Sandbox]
) -> None:
    def builder(last: str) -> Any:
        return (
            Template(file_context_path=context)
            .from_base_image()
            .copy("a.txt", "/srv/")
            .run_cmd("date +%s%N >/srv/when", user="root")
            .run_cmd(f"echo {last}")
        )

    def build(made: Any, to: str, **options: Any) -> list[LogEntry]:
        entries: list[LogEntry] = []
        Template.build(made, to, on_build_logs=_log(entries), **options)
        return entries

    def when() -> str:
        sandbox = create(name)
        return sandbox.commands.run("cat /srv/when").stdout

    assert not _said(build(builder("one"), name), "CACHED")
    first = when()
    assert len(_said(build(builder("one"), name), "CACHED")) == 3
    # Another template of the team, with another last step: what is equal is shared.
    assert len(_said(build(builder("two"), f"{name}-other"), "CACHED")) == 2
    (context / "a.txt").write_text("changed")
    assert not _said(build(builder("one"), name), "CACHED")
    changed = when()
    assert changed != first
    # A forced build is what builds after it find.
    assert not _said(build(builder("one"), name, skip_cache=True), "CACHED")
    forced = when()
    assert forced != changed
    assert len(_said(build(builder("one"), name), "CACHED")) == 3
    assert when() == forced


@one_tier("decided by the control plane")
def test_a_build_that_fails_names_the_callers_own_line(server: Any, name: str) -> None:
    builder = Template().from_base_image().run_cmd("echo fine").run_cmd("echo broken >&2; exit 7")
    entries: list[LogEntry] = []
    with pytest.raises(BuildException, match="'echo broken >&2; exit 7': exit status 7") as failed:
        Template.build(builder, name, on_build_logs=_log(entries))
    assert _said(entries, "^broken$")
    lines = [frame.line or "" for frame in traceback.extract_tb(failed.value.__traceback__)]
    assert any('run_cmd("echo broken' in line for line in lines)

    with pytest.raises(BuildException, match=r"image 'alpine:3' not found: its registry does not answer"):
        Template.build(Template().from_alpine_image("3"), name)
    with pytest.raises(BuildException, match="not found"):
        Template.build(Template().from_template("never-built"), name)
    with pytest.raises(BuildException, match="start command failed: exit status 9"):
        Template.build(Template().from_base_image().set_start_cmd("exit 9", "sleep 60"), name)
    # It has a name, and no build that a sandbox could be made of.
    assert Template.exists(name)
    with pytest.raises(SandboxException, match=r"404: .*no finished build"):
        Sandbox.create(name)


@one_tier("tags are kept by the control plane")
async def test_tags_name_builds_and_templates_stand_on_templates(server: Any, name: str) -> None:
    def builder(word: str) -> Any:
        return AsyncTemplate().from_base_image().run_cmd(f"echo {word} >/home/user/word")

    async def word(of: str) -> str:
        sandbox = await AsyncSandbox.create(of)
        try:
            return (await sandbox.commands.run("cat /home/user/word")).stdout.strip()
        finally:
            await sandbox.kill()

    one = await AsyncTemplate.build(builder("one"), f"{name}:v1", tags=["stable"])
    two = await AsyncTemplate.build_in_background(builder("two"), f"{name}:V2 ")
    while (status := await AsyncTemplate.get_build_status(two)).status.value in ("waiting", "building"):
        assert status.build_id == two.build_id
    assert status.status.value == "ready", status
    assert one.template_id == two.template_id
    tags = {tag.tag: tag.build_id for tag in await AsyncTemplate.get_tags(name)}
    assert tags == {"v1": one.build_id, "stable": one.build_id, "v2": two.build_id}
    assert await word(f"{name}:stable") == "one"
    with pytest.raises(SandboxException, match="'default'"):
        await AsyncSandbox.create(name)

    assigned = await AsyncTemplate.assign_tags(f"{name}:v2", ["default", "Prod"])
    assert (assigned.build_id, assigned.tags) == (two.build_id, ["default", "prod"])
    assert await word(name) == await word(f"{one.template_id}:prod") == "two"
    await AsyncTemplate.remove_tags(name, "prod")
    assert "prod" not in {tag.tag for tag in await AsyncTemplate.get_tags(name)}
    with pytest.raises(Exception, match="not found"):
        await AsyncTemplate.remove_tags(name, "prod")

    upon = f"{name}-upon"
    await AsyncTemplate.build(AsyncTemplate().from_template(f"{name}:v1").run_cmd("echo more >>/home/user/word"), upon)
    assert await word(upon) == "one\nmore"


@one_tier("decided by the control plane")
def test_names_files_and_steps_that_are_wrong_are_refused(server: Any, name: str) -> None:
    with _client(server) as client:
        for wrong in (
            "",
            "a b",
            "UPPER/!",
            "x" * 500,
            "base",
            "code-interpreter",
            "other-team/mine",
            f"{name}:{uuid4()}",
        ):
            assert client.post("/v3/templates", json={"name": wrong}).status_code in (400, 403), wrong
        made = client.post("/v3/templates", json={"name": f" {name.upper()} "}).json()
        assert made["aliases"] == [name]
        template, build = made["templateID"], made["buildID"]
        start = f"/v2/templates/{template}/builds/{build}"
        copy = {"type": "COPY", "args": ["x", "/x"], "filesHash": "0" * 64}
        for body in (
            {},
            {"fromImage": "debian", "fromTemplate": "base"},
            {"fromImage": "debian", "steps": [{"type": "FLY", "args": ["x"]}]},
            {"fromImage": "debian", "steps": [{"type": "RUN", "args": []}]},
            {"fromImage": "debian", "steps": [{"type": "RUN", "args": ["true", "no such user"]}]},
            {"fromImage": "debian", "steps": [{"type": "ENV", "args": ["A"]}]},
            {"fromImage": "debian", "steps": [{"type": "ENV", "args": ["A=B", "c"]}]},
            {"fromImage": "debian", "steps": [{**copy, "filesHash": "../../etc"}]},
            {"fromImage": "debian", "steps": [{**copy, "args": ["../x", "/x"]}]},
            {"fromImage": "debian", "steps": [{**copy, "args": ["x", "/x", "a;b"]}]},
            {"fromImage": "debian", "steps": [{"type": "RUN", "args": ["true"]}] * 300},
        ):
            assert client.post(start, json=body).status_code == 400, body
        assert (
            client.post(f"/v2/templates/{template}/builds/{uuid4()}", json={"fromImage": "debian"}).status_code == 404
        )
        assert client.get(f"/templates/{template}/files/ABC").status_code == 400
        link = httpx.URL(client.get(f"/templates/{template}/files/{'1' * 64}").json()["url"])
        assert httpx.put(link.copy_with(path=link.path[:-4] + "0000"), content=b"x").status_code == 403
        assert httpx.put(link.copy_with(path=link.path.replace("1" * 64, "2" * 64)), content=b"x").status_code == 403
        assert client.delete("/templates/base").status_code == 403
        assert client.patch(f"/v2/templates/{template}", json={"public": True}).json() == {"names": [f"default/{name}"]}
        assert client.get(f"/templates/aliases/{name}").json() == {"templateID": template, "public": True}
        assert client.delete(f"/templates/{name}").status_code == 204
        assert client.delete(f"/templates/{name}").status_code == 404


@one_tier("commands of the SDK, run as any other")
def test_every_documented_step_of_the_builder_does_what_it_says(
    server: Any, name: str, tmp_path: Path, create: Callable[..., Sandbox]
) -> None:
    """Packages are files of the test: what a registry or a mirror would answer decides nothing."""
    package, repository, deb = tmp_path / "npm-tool", tmp_path / "origin", tmp_path / "deb"
    for directory in (package, repository, deb / "DEBIAN", deb / "opt"):
        directory.mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "pip_tool-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pip_tool.py", "WORD = 'by-pip'")
        wheel.writestr("pip_tool-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: pip-tool\nVersion: 1\n")
        wheel.writestr("pip_tool-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("pip_tool-1.dist-info/RECORD", "")
    (package / "package.json").write_text('{"name": "npm-tool", "version": "1.0.0", "main": "main.js"}')
    (package / "main.js").write_text("module.exports = 'by-npm'")
    control = "Package: deb-tool\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: a test\n"
    (deb / "DEBIAN" / "control").write_text(control)
    (deb / "opt" / "deb-tool").write_text("by-apt")
    subprocess.run(["dpkg-deb", "-b", "--root-owner-group", "deb", "tool.deb"], cwd=tmp_path, check=True)
    (repository / "tracked").write_text("by-git")
    for command in ("init -qb main .", "add .", "-c user.name=a -c user.email=a@b commit -qm 1"):
        subprocess.run(["git", *command.split()], cwd=repository, check=True)
    (repository / ".git").rename(tmp_path / "repo.git")

    builder = (
        Template(file_context_path=tmp_path)
        .from_python_image("3")
        .copy_items([{"src": "*.whl", "dest": "/srv/"}, {"src": "tool.deb", "dest": "/srv/"}])
        .copy(["npm-tool", "repo.git"], "/home/user/in/")
        .copy("npm-tool", "/srv/npm-tool")
        .copy("repo.git", "/srv/repo.git")
        .pip_install("/srv/pip_tool-1-py3-none-any.whl")
        .set_workdir("/home/user/node")
        .npm_install("/srv/npm-tool")
        .run_cmd("rm /etc/apt/sources.list.d/*", user="root")
        .apt_install("/srv/tool.deb", no_install_recommends=True)
        .git_clone("file:///srv/repo.git", "/home/user/clone", branch="main", depth=1)
        .make_dir(["/home/user/one", "/home/user/two/deep"], mode=0o750)
        .make_symlink("/home/user/one", "/home/user/link")
        .rename("/home/user/two/deep", "/home/user/two/moved")
        .remove("/home/user/in", recursive=True, force=True)
        .set_envs({"WORD": "env"})
        .set_user("root")
        .run_cmd(["echo $WORD >/opt/word", "id -un >>/opt/word"])
        .set_user("user")
        .skip_cache()
        .run_cmd("true")
    )
    Template.build(builder, name, cpu_count=2, memory_mb=1024)
    run = create(name).commands.run
    assert run("python3 -c 'import pip_tool; print(pip_tool.WORD)'").stdout == "by-pip\n"
    assert run("pwd; node -p 'require(\"npm-tool\")'; cat /opt/deb-tool").stdout == "/home/user/node\nby-npm\nby-apt"
    assert run("cat /home/user/clone/tracked /opt/word").stdout == "by-gitenv\nroot\n"
    assert run("stat -c %a ~/one; readlink ~/link; ls ~/two; ls -d ~/in || true").stdout == (
        "750\n/home/user/one\nmoved\n"
    )


@one_tier("commands of the SDK, run as any other")
@pytest.mark.parametrize(
    ("start", "ready"),
    [
        ("python3 -m http.server 8000", wait_for_url("http://localhost:8000/")),
        ("exec -a awaited sleep 600", wait_for_process("sleep")),
        ("sleep 0.3; touch /tmp/ready; exec sleep 600", wait_for_file("/tmp/ready")),
        ("exec sleep 600", wait_for_timeout(1000)),
        ("exec sleep 600", "pgrep sleep"),
    ],
    ids=["url", "process", "file", "timeout", "command"],
)
def test_each_way_to_say_that_a_start_command_is_ready(
    server: Any, name: str, create: Callable[..., Sandbox], start: str, ready: Any
) -> None:
    entries: list[LogEntry] = []
    Template.build(Template().from_base_image().set_start_cmd(start, ready), name, on_build_logs=_log(entries))
    assert _said(entries, "^the start command is ready$")
    asked = ready if isinstance(ready, str) else ready.get_cmd()
    sandbox = create(name)
    assert sandbox.commands.run(asked).exit_code == 0
    assert "start_cmd" in [process.tag for process in sandbox.commands.list()]


def test_a_step_that_floods_its_log_fills_its_disk_or_needs_a_closed_network(
    server: Any, name: str, create: Callable[..., Sandbox]
) -> None:
    begun = {path.name for path in (server.data_dir / "sandboxes").iterdir()}
    base = Template().from_base_image()
    flood = Template.build_in_background(base.run_cmd("seq 100000"), name)
    eventually(
        lambda: Template.get_build_status(flood).status.value not in ("waiting", "building"),
        what="the flood",
        within_s=120,
    )
    assert Template.get_build_status(flood).status.value == "ready"
    (last,) = Template.get_build_status(flood, logs_offset=20_000).log_entries
    assert "the log is full" in last.message

    full = "fallocate -l 9900M /home/user/most; cat /dev/zero >/home/user/rest"
    with pytest.raises(BuildException, match="exit status 1"):
        Template.build(Template().from_base_image().run_cmd(full), f"{name}-full")
    closed = f"curl -sS -m 5 {server.url}/health"
    with pytest.raises(BuildException, match=r"curl.*exit status (7|28)"):
        Template.build(Template().from_base_image().run_cmd(closed), f"{name}-closed")
    eventually(
        lambda: {path.name for path in (server.data_dir / "sandboxes").iterdir()} <= begun,
        what="no sandbox of a build is left",
        within_s=30,
    )


@one_tier("decided by the control plane")
def test_a_template_that_is_deleted_while_it_is_used_and_one_that_is_another_teams(
    server: Any, name: str, create: Callable[..., Sandbox]
) -> None:
    command = [sys.executable, "-m", "atoll", "team", "create", name, "--json", "--data-dir", str(server.data_dir)]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    other = {"api_key": json.loads(made)["api_key"]}
    Template.build(Template().from_base_image().run_cmd("echo kept >/home/user/kept"), f"{name}:v1", tags=["default"])
    sandbox = create(name)
    for refused in (
        lambda: Template.assign_tags(f"{name}:v1", "theirs", **other),
        lambda: Template.remove_tags(name, "v1", **other),
        lambda: Sandbox.create(name, **other),
        lambda: Sandbox.create(f"default/{name}", **other),
    ):
        with pytest.raises(Exception, match=r"40[34]|not found"):
            refused()
    Template.build(Template().from_base_image().run_cmd("echo theirs >/home/user/kept"), name, **other)
    with _client(server) as client:
        client.headers["X-API-Key"] = other["api_key"]
        assert client.delete(f"/templates/default/{name}").status_code in (403, 404)
        client.headers["X-API-Key"] = server.api_key
        assert client.delete(f"/templates/{name}").status_code == 204
    assert sandbox.commands.run("cat /home/user/kept && echo more >>/home/user/kept").stdout == "kept\n"
    with pytest.raises(SandboxException, match=r"404: .*not found"):
        Sandbox.create(name)
    theirs = Sandbox.create(name, **other)
    assert theirs.files.read("/home/user/kept") == "theirs\n"
    theirs.kill()


@one_tier("unpacked by a program inside, whatever the wall")
def test_an_archive_that_lies_reaches_nothing_but_its_own_build(
    server: Any, name: str, create: Callable[..., Sandbox]
) -> None:
    """An upload is unpacked inside the build's sandbox, by whatever tar it has; the host never looks into it."""

    def archive(*paths: str) -> bytes:
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as made:
            link = tarfile.TarInfo("dir/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            made.addfile(link)
            for path in paths:
                member = tarfile.TarInfo(path)
                member.size = 2
                made.addfile(member, io.BytesIO(b"ok"))
        return raw.getvalue()

    uploads = (
        (archive("dir/fine", "../../../escaped"), "error"),
        (b"this is no archive", "error"),
        (archive("dir/fine", "/absolute"), "ready"),
    )
    steps = [{"type": "COPY", "args": ["dir", "/srv/dir"], "filesHash": "a" * 64}]
    with _client(server) as client:
        for content, ends in uploads:
            made = client.post("/v3/templates", json={"name": name}).json()
            template, build = made["templateID"], made["buildID"]
            url = client.get(f"/templates/{template}/files/{'a' * 64}").json()["url"]
            assert httpx.put(url, content=content).status_code == 204
            body = {"fromImage": "e2bdev/base", "steps": steps, "force": True}
            assert client.post(f"/v2/templates/{template}/builds/{build}", json=body).status_code == 202
            status = f"/templates/{template}/builds/{build}/status"
            eventually(
                lambda s=status: client.get(s).json()["status"] not in ("waiting", "building"),
                what="the build",
                within_s=60,
            )
            answer = client.get(status).json()
            assert answer["status"] == ends, answer
            assert answer.get("reason", {"step": "1"})["step"] == "1"
    sandbox = create(name)
    assert sandbox.commands.run("cat /srv/dir/fine; readlink /srv/dir/link; ls /absolute /escaped || true").stdout == (
        "ok/etc/passwd\n"
    )


@one_tier("taken in turn by the control plane")
def test_builds_at_once_share_a_step_and_a_deleted_template_ends_its_build(
    server: Any, name: str, create: Callable[..., Sandbox]
) -> None:
    builder = Template().from_base_image().run_cmd(f"echo {name} >/home/user/shared; sleep 1")
    with ThreadPoolExecutor(3) as pool:
        logs: list[list[LogEntry]] = [[], [], []]
        builds = [
            pool.submit(Template.build, builder, f"{name}-{n % 2}", on_build_logs=_log(logs[n])) for n in range(3)
        ]
        for one in builds:
            one.result()
    assert sum(len(_said(entries, "CACHED")) for entries in logs) == 2
    assert create(f"{name}-1").commands.run("cat /home/user/shared").stdout == f"{name}\n"

    endless = Template.build_in_background(Template().from_base_image().run_cmd("echo begun; sleep 600"), name)
    begun = lambda: any(e.message == "begun" for e in Template.get_build_status(endless, 0).log_entries)  # noqa: E731
    eventually(begun, what="the build", within_s=60)
    directories = server.data_dir / "sandboxes"
    before = {path.name for path in directories.iterdir()}
    with _client(server) as client:
        assert client.delete(f"/templates/{name}").status_code == 204
    eventually(
        lambda: len({path.name for path in directories.iterdir()} & before) < len(before), what="the build", within_s=20
    )
    with pytest.raises(Exception, match="not found"):
        Template.get_build_status(endless)


def test_a_build_goes_on_where_its_node_is_killed_and_started_again(
    server: Any, name: str, create: Callable[..., Sandbox]
) -> None:
    """The command that ran goes on in its sandbox; what the node was needed for meanwhile begins again."""
    builder = Template().from_base_image()
    for number in range(3):
        builder = builder.run_cmd(f"echo begun {number}; sleep 2; echo {number} >>/home/user/numbers")
    build = Template.build_in_background(builder, name)

    def said(pattern: str) -> list[str]:
        return _said(Template.get_build_status(build, logs_offset=0).log_entries, pattern)

    for number in (0, 1):
        eventually(lambda number=number: said(f"^begun {number}$"), what=f"step {number}", within_s=120)
        os.kill(server.pid_of("node"), signal.SIGKILL)
    ended = ("ready", "error")
    eventually(lambda: Template.get_build_status(build).status.value in ended, what="the build's end", within_s=200)
    status = Template.get_build_status(build)
    assert status.status.value == "ready", status
    assert create(name).files.read("/home/user/numbers") == "0\n1\n2\n"


def test_a_server_that_is_killed_during_a_build_leaves_neither_a_sandbox_nor_a_build_that_never_ends(
    make_server: Callable[..., Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_server()
    for variable, value in first.environ.items():
        monkeypatch.setenv(variable, value)
    endless = Template.build_in_background(Template().from_base_image().run_cmd("echo begun; sleep 600"), name)
    begun = lambda: any(e.message == "begun" for e in Template.get_build_status(endless, 0).log_entries)  # noqa: E731
    eventually(begun, what="the build", within_s=60)
    first.stop(signal.SIGKILL)
    second = make_server(first.data_dir)
    for variable, value in second.environ.items():
        monkeypatch.setenv(variable, value)
    status = Template.get_build_status(endless)
    assert status.status.value == "error"
    assert status.reason is not None
    assert "restarted" in status.reason.message
    eventually(lambda: not list((second.data_dir / "sandboxes").iterdir()), what="the build", within_s=20)
    began = time.monotonic()
    Template.build(Template().from_base_image().run_cmd("echo again"), name)
    assert time.monotonic() - began < 120


@one_tier("counted and timed by the control plane")
def test_builds_have_a_time_limit_and_count_for_their_team(
    start_server: Callable[..., Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"ATOLL_BUILD_TIMEOUT_S": "3", "ATOLL_TEAM_BUILDS": "1", "ATOLL_MAX_SANDBOXES": "1"}
    own = start_server(environ=limits)
    for variable, value in own.environ.items():
        monkeypatch.setenv(variable, value)
    endless = Template().from_base_image().run_cmd("echo begun; sleep 600")
    first = Template.build_in_background(endless, f"{name}-endless")
    second = Template.build_in_background(Template().from_base_image().run_cmd("true"), name)

    def says(build: Any, pattern: str) -> list[str]:
        return _said(Template.get_build_status(build, 0).log_entries, pattern)

    eventually(lambda: says(first, "^begun"), what="the first build", within_s=20)
    with pytest.raises(SandboxException, match="may have 1 at once"):
        Sandbox.create("base")
    assert says(second, "^waiting for other builds")
    eventually(lambda: Template.get_build_status(second).status.value == "ready", what="its turn", within_s=30)
    given_up = Template.get_build_status(first)
    assert given_up.reason is not None
    assert (given_up.reason.step, given_up.reason.message) == ("1", "the build took longer than 3 s")

    taken = Sandbox.create("base")
    with pytest.raises(BuildException, match="not made: the team has 1 sandboxes and may have 1 at once"):
        Template.build(Template().from_base_image().run_cmd("true # again"), name)
    taken.kill()
    Template.build(Template().from_base_image().run_cmd("true # again"), name)
    eventually(lambda: not list((own.data_dir / "sandboxes").iterdir()), what="an end of all sandboxes")
