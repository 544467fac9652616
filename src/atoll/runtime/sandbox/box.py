"""E2BBox: a sandbox for callers without events: execute, copy in and out, files. Also what the runtime stands on.

Owns creating or connecting, the lease that keeps the sandbox alive, and its end. Only the public SDK is used, so that
the same class works on E2B's cloud; the connection is the SDK's own reading of E2B_API_KEY, E2B_DOMAIN and E2B_API_URL,
or an embedded platform (`embedded.py`).
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, NamedTuple, Self
from uuid import uuid4

import httpx
from e2b import (
    CommandExitException,
    RateLimitException,
    SandboxException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)
from e2b.connection_config import DEFAULT_RETRIES
from e2b.sandbox_sync.filesystem.filesystem import Filesystem
from e2b_code_interpreter import Sandbox

from atoll.runtime.config import SandboxConfig
from atoll.runtime.errors import LOST, AgentRuntimeDisconnectedError, AgentRuntimeError, lost_sandbox_raises
from atoll.runtime.files.tree import MAX_COPY_BYTES, PACK, UNPACK, TooMuch, reported, tar_size, tar_stream, zip_of_tar
from atoll.runtime.files.untar import BadArchive
from atoll.runtime.options import (
    DEFAULT_TEMPLATE,
    JUPYTER_TEMPLATE,
    SandboxOptions,
    missing_template_hint,
    sandbox_options,
)
from atoll.runtime.repository.credentials import Authorization
from atoll.runtime.sandbox.egress_rules import EgressRules
from atoll.runtime.sandbox.embedded import connection
from atoll.runtime.sandbox.lease import LEASE_S, Lease
from atoll.runtime.sandbox.waiting import once_built

SID_KEY = "atoll.sid"
"""Metadata under which a session's sandbox is found again, from any process."""

TRANSFER_TIMEOUT_S = 3600.0
CREATE_TRIES = 3
PREPARE_TIMEOUT_S = 1800.0

__all__ = ["DEFAULT_TEMPLATE", "JUPYTER_TEMPLATE", "SID_KEY", "E2BBox", "E2BSandbox", "Executed", "find_sandboxes"]

_log = logging.getLogger("atoll.runtime")


Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)"""


class Executed(NamedTuple):
    """A command's end: exit code (-1: it took too long) and standard output and error as they came."""

    exit_code: int
    output: str


class Snapshot(NamedTuple):
    """`why_no_memory`: the platform's reason; "" where what runs is in it."""

    snapshot_id: str
    why_no_memory: str


class E2BBox:
    """A sandbox of `template`, or the one named by `sandbox_id`. Ends with `close`, at the latest LEASE_S after us.

    Raises AgentRuntimeUnavailableError (no platform), AgentRuntimeDisconnectedError (`sandbox_id` is gone), and what
    the SDK raises for a wrong key or template, unchanged.
    """

    def __init__(
        self,
        config: SandboxConfig | None = None,
        sandbox_id: str | None = None,
        *,
        template: str | None = None,
        metadata: Mapping[str, str] | None = None,
        envs: Mapping[str, str] | None = None,
        user: str | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.config = SandboxConfig.of(config) if config is not None else SandboxConfig()
        options = sandbox_options(self.config, template)
        for warning in options.warnings:
            _log.warning("%s", warning)
        self.template = options.template
        self.user = user
        self.closed = False
        self._connection = connection_of(options, environ)
        if sandbox_id is not None:
            self.sandbox = self._connect(sandbox_id)
        else:
            self.sandbox = self._create(options, dict(metadata or {}), {**options.envs, **(envs or {})})
        self._lease = Lease(self.sandbox)
        self._egress_rules = EgressRules(self.sandbox)
        if sandbox_id is None:
            try:
                self._prepare(options)
            except BaseException:
                self.close()
                raise

    def _create(self, options: SandboxOptions, metadata: dict[str, str], envs: dict[str, str]) -> Sandbox:
        """Tries again when the platform is busy or not reached, unless the configuration says not to."""
        patience_s = float(max(1, self.config.remote_runtime_init_timeout))
        params = {**self._connection, "request_timeout": patience_s, "retries": 0}

        def create() -> Sandbox:
            return Sandbox.create(
                options.template,
                timeout=LEASE_S,
                metadata={**metadata, **options.metadata},
                envs=envs,
                **options.create,
                **params,
            )

        tries = CREATE_TRIES if self.config.remote_runtime_enable_retries else 1
        for attempt in range(1, tries + 1):
            try:
                made = once_built(create, lambda note: _log.warning("%s", note))
                made.connection_config.request_timeout = self._connection["request_timeout"]
                made.connection_config.retries = DEFAULT_RETRIES
                return made
            except (SandboxException, httpx.ConnectError) as error:
                if is_passing(error) and attempt < tries:
                    _log.info("the sandbox could not be made (%s), trying again", error)
                    time.sleep(2.0 ** (attempt - 1))
                    continue
                hint = missing_template_hint(self.config, options.template)
                if hint is None or "404" not in str(error):  # the SDK has no class of its own for a missing template
                    raise
                raise AgentRuntimeError(f"there is no template {options.template!r}", hint=hint) from error
        raise AssertionError("unreachable")

    def _prepare(self, options: SandboxOptions) -> None:
        """What the configuration asks of a new sandbox. Raises AgentRuntimeError."""
        if options.machine is not None:
            found = self.execute("uname -m").output.strip()
            if found != options.machine:
                raise AgentRuntimeError(
                    f"sandbox.platform = {self.config.platform!r} asks for {options.machine}, the sandbox is {found}",
                    hint="the platform runs on one kind of processor; leave the field empty",
                )
        if options.prepare is not None:
            done = self.execute(options.prepare, timeout=PREPARE_TIMEOUT_S, user="root")
            if done.exit_code != 0:
                raise AgentRuntimeError(
                    f"sandbox.runtime_extra_deps failed with exit code {done.exit_code}: {done.output[-2000:].strip()}"
                )
        for copy in options.copies:
            self._copy_in(copy.source, copy.target)

    def _copy_in(self, source: str, target: str) -> None:
        """`source` of the host becomes `target`, whatever its own name is."""
        if not Path(source).is_dir():
            self.sandbox.files.write(target, Path(source).read_bytes(), user=self.user)
            return
        for entry in sorted(Path(source).iterdir()):
            self.copy_to(str(entry), target, recursive=True)

    def _connect(self, sandbox_id: str) -> Sandbox:
        try:
            return Sandbox.connect(sandbox_id, timeout=LEASE_S, **self._connection)
        except LOST as error:
            raise AgentRuntimeDisconnectedError(f"the sandbox {sandbox_id} is gone: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def sandbox_id(self) -> str:
        return str(self.sandbox.sandbox_id)

    @property
    def filesystem(self) -> Filesystem:
        """The SDK's files of this sandbox."""
        files: Filesystem = self.sandbox.files
        return files

    def authorize(self, added: Authorization) -> None:
        """See EgressRules.authorize."""
        self._egress_rules.authorize(added)

    def execute(
        self,
        cmd: str,
        timeout: float | None = None,
        *,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> Executed:
        """Runs a command in a process of its own: a fresh login shell. `timeout` in seconds, 0 for none.

        Unpacks as `exit_code, output`. A command that fails is a result. Raises AgentRuntimeDisconnectedError.
        """
        seconds = self.config.timeout if timeout is None else timeout
        pieces: list[str] = []
        with lost_sandbox_raises():
            try:
                code = self.sandbox.commands.run(
                    cmd,
                    envs=dict(envs or {}),
                    user=user or self.user,
                    cwd=cwd,
                    timeout=seconds,
                    on_stdout=pieces.append,
                    on_stderr=pieces.append,
                ).exit_code
            except CommandExitException as ended:
                code = ended.exit_code
            except LOST:
                raise
            except TimeoutException:
                pieces.append(f'Command: "{cmd}" timed out')
                code = -1
        return Executed(code, "".join(pieces))

    def copy_to(
        self, host_src: str, sandbox_dest: str, recursive: bool = False, progress: Progress | None = None
    ) -> None:
        """Copies a file, or with `recursive` a tree under its own name, into the directory `sandbox_dest`.

        The directory is made if it is missing; dot-files, links and modes are kept. What is new appears at once; in a
        tree that is there, each file is replaced at once. `progress` is called with (bytes done, bytes in all).
        Raises FileNotFoundError, IsADirectoryError (a directory without `recursive`), NotADirectoryError,
        AgentRuntimeError.
        """
        source = Path(os.path.abspath(host_src))
        if not source.exists() and not source.is_symlink():
            raise FileNotFoundError(2, "No such file or directory", str(source))
        if source.is_dir() and not recursive:
            raise IsADirectoryError(21, "Is a directory; pass recursive=True to copy it", str(source))
        if not PurePosixPath(sandbox_dest).is_absolute():
            raise ValueError(f"the destination is an absolute path in the sandbox, not {sandbox_dest!r}")
        archive = f"/tmp/.atoll-{uuid4().hex}.tar"
        stream = tar_stream(source)
        if progress is not None:
            stream = reported(stream, tar_size(source), progress)
        with lost_sandbox_raises():
            self.sandbox.files.write(archive, stream, user="root", request_timeout=TRANSFER_TIMEOUT_S)
        done = self._script(UNPACK, sandbox_dest.rstrip("/") or "/", archive, self.user or "user", source.name)
        if done.exit_code == 20:
            raise NotADirectoryError(20, "Not a directory", sandbox_dest)
        if done.exit_code != 0:
            raise AgentRuntimeError(f"copying {source} to {sandbox_dest} failed in the sandbox: {done.output.strip()}")

    def copy_from(self, path: str, max_bytes: int = MAX_COPY_BYTES) -> Path:
        """A temporary zip file on the host with a file, or with what is in a directory; the caller removes it.

        `max_bytes`: the most that all files together may have. Raises FileNotFoundError, ValueError (not an absolute
        path), AgentRuntimeError (also for more than that, or where the sandbox sends no honest archive).
        """
        if not PurePosixPath(path).is_absolute():
            raise ValueError(f"the path is an absolute path in the sandbox, not {path!r}")
        archive = f"/tmp/.atoll-{uuid4().hex}.tar"
        done = self._script(PACK, path, archive)
        if done.exit_code == 20:
            raise FileNotFoundError(2, "No such file or directory", path)
        if done.exit_code != 0:
            raise AgentRuntimeError(f"packing {path} failed in the sandbox: {done.output.strip()}")
        try:
            with lost_sandbox_raises():
                return zip_of_tar(self._chunks(archive), max_bytes)
        except BadArchive as error:
            raise AgentRuntimeError(f"what the sandbox sent of {path} is no archive of files: {error}") from error
        except TooMuch as error:
            raise AgentRuntimeError(f"{path} is too much to copy: {error}", hint="copy parts of it") from error
        finally:
            self.execute(f"rm -f -- {shlex.quote(archive)}", user="root")

    def _chunks(self, path: str) -> Iterator[bytes]:
        with self.sandbox.files.read(path, format="stream", user="root", request_timeout=TRANSFER_TIMEOUT_S) as reader:
            yield from reader

    def _script(self, script: str, *arguments: str) -> Executed:
        line = shlex.join(["bash", "-c", script, "atoll", *arguments])
        return self.execute(line, timeout=TRANSFER_TIMEOUT_S, user="root")

    def get_working_directory(self) -> str:
        """Where `execute` begins: the user's home."""
        return self.execute("pwd").output.strip()

    def snapshot(self) -> Snapshot:
        """What it is now; it goes on. With memory where the platform can, else of its files.

        Raises AgentRuntimeDisconnectedError, and what the SDK raises (the platform makes no snapshots at all).
        """
        with lost_sandbox_raises():
            try:
                return Snapshot(self.sandbox.create_snapshot(mode="full").snapshot_id, "")
            except SandboxException as error:
                if re.match(r"400:", str(error)) is None:
                    raise
                made = self.sandbox.create_snapshot(mode="filesystem")
                return Snapshot(made.snapshot_id, str(error))

    def delete_snapshot(self, snapshot_id: str) -> bool:
        """False: there is none. Raises what the SDK raises."""
        return bool(Sandbox.delete_snapshot(snapshot_id, **self._connection))

    def close(self) -> None:
        """Ends the sandbox. Idempotent; never raises for one that is gone already."""
        if self.closed:
            return
        self.closed = True
        self._lease.stop()
        try:
            self.sandbox.kill()
        except LOST:
            return

    def release(self, *, seconds: int, pause: bool) -> None:
        """Leaves the sandbox to others: paused where the platform can, else running for `seconds`. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._lease.stop()
        if pause:
            try:
                self._pause()
                return
            except LOST:
                return
            except Exception as error:
                _log.warning(
                    "the platform does not pause sandboxes (%s): this one goes on running for %d seconds (close_delay)",
                    error,
                    seconds,
                )
        try:
            self.sandbox.set_timeout(seconds)
        except Exception as error:
            _log.warning("the sandbox may end earlier than asked (%s)", error)

    def _pause(self) -> None:
        """With memory where the platform can."""
        try:
            self.sandbox.pause()
        except LOST:
            raise
        except SandboxException as error:
            if re.match(r"400:", str(error)) is None:
                raise
            self.sandbox.pause(mode="filesystem")
            _log.info("the sandbox is paused with its disk alone (%s)", error)


E2BSandbox = E2BBox


def is_passing(error: Exception) -> bool:
    """Whether a create that failed so may work a little later: the platform is busy, or was not reached at all."""
    if isinstance(error, (RateLimitException, httpx.ConnectError)):
        return True
    return isinstance(error, SandboxException) and re.match(r"5\d\d:", str(error)) is not None


def connection_of(options: SandboxOptions, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The SDK's connection parameters: the environment's platform first, a key of the configuration without one."""
    given = dict(options.connection)
    if environ.get("E2B_API_KEY"):
        given.pop("api_key", None)
    named = {**environ, "E2B_API_KEY": given["api_key"]} if "api_key" in given else environ
    return {**connection(named), **given}


def find_sandboxes(sid: str, params: Mapping[str, Any]) -> list[str]:
    """Ids of the sandboxes of a session, newest first, asked of the server."""
    query = SandboxQuery(metadata={SID_KEY: sid}, state=[SandboxState.RUNNING, SandboxState.PAUSED])
    pages = Sandbox.list(query=query, **params)
    found = []
    while pages.has_next:
        found += pages.next_items()
    return [info.sandbox_id for info in sorted(found, key=lambda info: info.started_at, reverse=True)]
