"""From the machine's apt configuration to one mmdebstrap command line. Owns which sources count as Debian's.

The machine's own sources are used, so that a build works behind a mirror or proxy wherever `apt-get` works; sources of
other vendors are left out. Nothing of them stays in the tree (the recipe's script writes neutral ones).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from atoll.model.errors import BackendUnavailable

FALLBACK_SUITE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# apt settings that decide whether a download works at all; the rest of the machine's apt.conf is its own business.
_PASSED_ON = re.compile(
    r"^Acquire::(?:(?:https?|ftp|socks5h)::.*|Check-Valid-Until|Check-Date|ForceIPv[46]|Retries|Max-FutureTime)$", re.I
)


@dataclass(frozen=True, slots=True)
class Source:
    """One stanza of an apt source list."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)

    def render(self) -> str:
        """As a deb822 stanza."""
        lines = [
            "Types: deb",
            f"URIs: {' '.join(self.uris)}",
            f"Suites: {' '.join(self.suites)}",
            f"Components: {' '.join(self.components)}",
            *(f"{name}: {value}" for name, value in self.options.items()),
        ]
        return "\n".join(lines) + "\n"


def parse_deb822(text: str) -> Iterator[Source]:
    """Stanzas of a `.sources` file; disabled ones and `deb-src` only ones are left out."""
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in " \t" and name:
                fields[name] += "\n" + line
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0") or "deb" not in fields.get("types", "").split():
            continue
        options = {
            shown: fields[key]
            for key, shown in (
                ("signed-by", "Signed-By"),
                ("trusted", "Trusted"),
                ("check-valid-until", "Check-Valid-Until"),
            )
            if key in fields
        }
        yield Source(
            uris=tuple(fields.get("uris", "").split()),
            suites=tuple(fields.get("suites", "").split()),
            components=tuple(fields.get("components", "").split()),
            options=options,
        )


_ONE_LINE = re.compile(r"^deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>[^#]+)")


def parse_one_line(text: str) -> Iterator[Source]:
    """`deb` lines of a `.list` file."""
    for line in text.splitlines():
        if found := _ONE_LINE.match(line.strip()):
            given = dict(part.partition("=")[::2] for part in (found["options"] or "").split())
            names = {"signed-by": "Signed-By", "trusted": "Trusted", "check-valid-until": "Check-Valid-Until"}
            options = {names[key]: value for key, value in given.items() if key in names}
            yield Source((found["uri"],), (found["suite"],), tuple(found["components"].split()), options)


def debian_only(sources: Iterable[Source], codename: str) -> list[Source]:
    """Those that belong to Debian's release `codename`: its own suites (not backports) with component `main`."""
    known = {
        f"{name}{tail}"
        for name in (codename, "stable", "oldstable")
        for tail in ("", "-updates", "-security", "/updates", "-proposed-updates")
    }
    kept = []
    for source in sources:
        suites = tuple(suite for suite in source.suites if suite.rstrip("/") in known)
        if suites and "main" in source.components and source.uris:
            # `cdrom:` and `file:` sources need what only this machine's apt can see at this moment.
            uris = tuple(uri for uri in source.uris if not uri.startswith("cdrom:"))
            if uris:
                kept.append(Source(uris, suites, ("main",), source.options))
    return kept


def os_release(path: Path = Path("/etc/os-release")) -> dict[str, str]:
    """The machine's os-release as a dict; empty when there is none."""
    if not path.exists():
        return {}
    pairs = (line.partition("=")[::2] for line in path.read_text().splitlines() if "=" in line)
    return {key: value.strip().strip("\"'") for key, value in pairs}


@dataclass(frozen=True, slots=True)
class Archive:
    """Where a tree comes from. No `sources`: mmdebstrap's own default mirror."""

    suite: str
    sources: tuple[Source, ...]


def host_archive(etc: Path = Path("/etc")) -> Archive:
    """The machine's release and sources if it is a Debian, else the default ones."""
    release = os_release(etc / "os-release")
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not codename:
        return Archive(FALLBACK_SUITE, ())
    apt = etc / "apt"
    found: list[Source] = []
    if (main := apt / "sources.list").is_file():
        found += parse_one_line(main.read_text())
    for path in sorted((apt / "sources.list.d").glob("*")):
        if path.suffix == ".list":
            found += parse_one_line(path.read_text())
        elif path.suffix == ".sources":
            found += parse_deb822(path.read_text())
    return Archive(codename, tuple(debian_only(found, codename)))


def passed_on_settings(apt_config_dump: str) -> list[str]:
    """Lines for `--aptopt`, out of the output of `apt-config dump`."""
    lines = []
    for line in apt_config_dump.splitlines():
        name, _, value = line.rstrip().rstrip(";").partition(" ")
        if value not in ('""', "") and _PASSED_ON.match(name) and not name.endswith("::"):
            lines.append(f"{name} {value}")
    return lines


@dataclass(frozen=True, slots=True)
class AptInside:
    """What a build inside a tree hands to apt: files to be written and files to be copied, by name."""

    texts: Mapping[str, str]
    copies: Mapping[str, Path]


def settings_inside(archive: Archive, aptopts: Iterable[str], inside: Path) -> AptInside:
    """Makes the machine's own apt settings true inside a tree that shows the named files as `inside`/….

    Keyrings and certificates that a setting names come along as copies. Without sources the tree's own are used.
    """
    copies: dict[str, Path] = {}

    def moved(value: str) -> str:
        path = Path(value)
        if not path.is_absolute() or not path.is_file():
            return value
        name = f"apt{len(copies)}-{path.name}"
        copies[name] = path
        return str(inside / name)

    # As root: apt's own user may not read what is handed over, and the tree is nobody's machine.
    lines = ['APT::Sandbox::User "root";']
    for line in aptopts:
        name, _, value = line.partition(" ")
        lines.append(f'{name} "{moved(value.strip(chr(34)))}";')
    texts = {}
    if archive.sources:
        sources = [
            replace(source, options={key: moved(value) for key, value in source.options.items()})
            for source in archive.sources
        ]
        texts["debian.sources"] = "\n".join(source.render() for source in sources)
        lines += [f'Dir::Etc::SourceList "{inside / "debian.sources"}";', 'Dir::Etc::SourceParts "/dev/null";']
    texts["apt.conf"] = "\n".join(lines) + "\n"
    return AptInside(texts, copies)


def ensure_mmdebstrap() -> str:
    """Path of mmdebstrap; installs it by apt when root. Raises BackendUnavailable with the line to run."""
    line = "sudo apt-get install -y mmdebstrap debian-archive-keyring"
    path = shutil.which("mmdebstrap")
    if path and KEYRING.exists():
        return path
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], line.split()[1:]):
            done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode == 0 and (path := shutil.which("mmdebstrap")):
            return path
        raise BackendUnavailable(
            f"mmdebstrap could not be installed: {done.stderr.strip()[-400:]}", hint=f"run: {line}"
        )
    raise BackendUnavailable("building a template needs mmdebstrap", hint=f"run: {line}")


def mmdebstrap_command(
    program: str,
    archive: Archive,
    packages: Iterable[str],
    sources_file: Path,
    aptopts: Iterable[str],
    *,
    target: str,
    rootless: bool,
) -> list[str]:
    """The command that writes the tree to `target` ("-": as a tar); writes `sources_file` if there are sources."""
    command = [program, f"--mode={'unshare' if rootless else 'root'}", "--variant=minbase"]
    command += [f"--include={','.join(packages)}"]
    excludes = (
        "/usr/share/man/*",
        "/usr/share/doc/*",
        "/usr/share/locale/*",
        "/usr/share/info/*",
        "/usr/share/lintian/*",
    )
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in excludes]
    command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright", "--dpkgopt=force-unsafe-io"]
    command += ['--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"']
    command += [f"--aptopt={line}" for line in aptopts]
    command += [archive.suite, target]
    if archive.sources:
        sources_file.write_text("\n".join(source.render() for source in archive.sources))
        command.append(str(sources_file))
    return command
