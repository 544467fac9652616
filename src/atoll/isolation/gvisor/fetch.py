"""Gets runsc from Debian: downloaded and checked by apt, unpacked into a directory of ours, nothing installed.

The machine's package sources stay as they are: apt is given a source list, index and cache of its own in a scratch
directory. The source is derived from the machine's own (same mirror, same signing key); on Debian 12 it is the
`-backports` suite, whose release has the systrap platform, which the one in Debian 12 itself lacks.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from atoll.isolation.gvisor.runsc import UNPACKED
from atoll.model.errors import BackendUnavailable

_APT_WITHIN_S = 300.0
_FROM_BACKPORTS = frozenset({"bookworm"})


@dataclass(frozen=True, slots=True)
class Source:
    """One package source: where, and with which key ("" for apt's own keys)."""

    uri: str
    suites: tuple[str, ...]
    signed_by: str = ""


def fetch(tools_dir: Path, etc: Path = Path("/etc")) -> Path:
    """Downloads and unpacks; returns the program. Takes a minute. Raises BackendUnavailable with the reason."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise BackendUnavailable(
                f"runsc cannot be fetched: this machine has no {program}",
                hint="install runsc by other means; see https://gvisor.dev/docs/user_guide/install/",
            )
    try:
        release = parse_os_release((etc / "os-release").read_text())
    except OSError as error:
        raise BackendUnavailable(f"runsc cannot be fetched: the system does not say what it is: {error}") from error
    suite = suite_for(release)
    source = choose_source(read_sources(etc / "apt"), release.get("VERSION_CODENAME", ""))
    try:
        with tempfile.TemporaryDirectory(prefix="atoll-apt-") as scratch:
            package = _download(Path(scratch), source, suite)
            return _unpack(package, tools_dir)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendUnavailable(f"runsc cannot be fetched: {error}") from error


def parse_os_release(text: str) -> dict[str, str]:
    """/etc/os-release as a table."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}


def suite_for(release: Mapping[str, str]) -> str:
    """The suite that has a usable runsc. Raises BackendUnavailable: not a Debian that we know."""
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not re.fullmatch(r"[a-z]+", codename):
        name = release.get("PRETTY_NAME", "this system")
        raise BackendUnavailable(
            f"runsc cannot be fetched: {name} is not Debian",
            hint="install runsc by other means and put it on the PATH; see https://gvisor.dev/docs/user_guide/install/",
        )
    return f"{codename}-backports" if codename in _FROM_BACKPORTS else codename


def read_sources(apt: Path) -> list[Source]:
    """Every package source of the machine, in both of apt's formats. What cannot be read is passed over."""
    found: list[Source] = []
    parts = sorted((apt / "sources.list.d").glob("*")) if (apt / "sources.list.d").is_dir() else []
    for path in [apt / "sources.list", *parts]:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError):
            continue
        if path.suffix == ".sources":
            found += parse_deb822(text)
        elif path.suffix == ".list":
            found += parse_one_line(text.splitlines())
    return found


def parse_deb822(text: str) -> list[Source]:
    """The format of `*.sources`: paragraphs of `Name: value`."""
    found = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
        fields = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() not in ("no", "false"):
            suites = tuple(fields.get("suites", "").split())
            key = fields.get("signed-by", "")
            found += [Source(uri, suites, key if key.startswith("/") else "") for uri in fields.get("uris", "").split()]
    return found


def parse_one_line(lines: Iterable[str]) -> list[Source]:
    """The format of `*.list`: `deb [options] uri suite components`."""
    found = []
    for line in lines:
        match = re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)", line.strip())
        if match is not None:
            key = re.search(r"signed-by=(\S+)", match[1] or "")
            found.append(Source(match[2], (match[3],), key[1] if key else ""))
    return found


def choose_source(sources: Iterable[Source], codename: str) -> Source:
    """The mirror from which the machine gets the release itself. Raises BackendUnavailable."""
    for source in sources:
        if codename in source.suites and not source.uri.rstrip("/").endswith("security"):
            return source
    raise BackendUnavailable(
        f"runsc cannot be fetched: no package source of this machine offers {codename!r}",
        hint="install runsc by other means and put it on the PATH",
    )


def _download(scratch: Path, source: Source, suite: str) -> Path:
    for folder in ("parts", "lists/partial", "cache/archives/partial", "out"):
        (scratch / folder).mkdir(parents=True)
    text = f"Types: deb\nURIs: {source.uri}\nSuites: {suite}\nComponents: main\n"
    if source.signed_by:
        text += f"Signed-By: {source.signed_by}\n"
    (scratch / "parts" / "runsc.sources").write_text(text)
    options = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": scratch / "parts",
        "Dir::State::Lists": scratch / "lists",
        "Dir::Cache": scratch / "cache",
        "APT::Sandbox::User": "root",  # the scratch directory is closed to apt's own user
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
    }
    arguments = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    for command in (["update"], ["download", f"runsc/{suite}"]):
        done = subprocess.run(
            ["apt-get", "-q", *arguments, *command],
            cwd=scratch / "out",
            capture_output=True,
            text=True,
            timeout=_APT_WITHIN_S,
            check=False,
        )
        packages = sorted((scratch / "out").glob("runsc_*.deb"))
        if done.returncode != 0 or (command[0] == "download" and not packages):
            output = (done.stderr or done.stdout).strip().splitlines()
            raise BackendUnavailable(
                f"runsc cannot be fetched from {source.uri} {suite}: {output[-1] if output else 'apt-get failed'}",
                hint="check the machine's way to its Debian mirror, or put a runsc on the PATH",
            )
    return packages[-1]


def _unpack(package: Path, tools_dir: Path) -> Path:
    """Into place in one step; an older one is replaced, its running sandboxes keep their file."""
    tools_dir.mkdir(parents=True, exist_ok=True)
    fresh = tools_dir / f".runsc-{secrets.token_hex(4)}"
    old = tools_dir / f".runsc-{secrets.token_hex(4)}"
    try:
        subprocess.run(["dpkg-deb", "-x", str(package), str(fresh)], check=True, capture_output=True, timeout=60)
        if not os.access(fresh / UNPACKED.relative_to("runsc"), os.X_OK):
            raise BackendUnavailable(f"the package {package.name} for {platform.machine()} holds no runsc")
        if (tools_dir / "runsc").exists():
            (tools_dir / "runsc").rename(old)
        fresh.rename(tools_dir / "runsc")
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode(errors="replace").strip()
        raise BackendUnavailable(f"the package {package.name} cannot be unpacked: {words}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return tools_dir / UNPACKED
