"""The machine's pip settings, made usable inside a tree. Owns the translation, not the mounting.

Behind a mirror or a proxy pip only works with the machine's own index, certificate bundle and proxy. They are read from
pip's configuration files and PIP_* variables, and handed to the build in a tmpfs: certificate files as copies, local
`file:` indexes and wheel folders as read-only binds. Nothing of them stays in the template.
"""

from __future__ import annotations

import configparser
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Settings that say where packages come from and how to get there. Anything else (target, user, require-virtualenv, …)
# is how this machine likes its own installs and has no place in a template.
_PASSED_ON = frozenset(
    {
        "index-url", "extra-index-url", "no-index", "find-links", "trusted-host", "cert", "client-cert", "proxy",
        "timeout", "default-timeout", "retries", "prefer-binary", "constraint",
    }
)  # fmt: skip
_FILES = frozenset({"cert", "client-cert", "constraint"})
_LISTS = frozenset({"extra-index-url", "find-links", "trusted-host"})
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_BUNDLE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")

INSIDE = Path("/run/build")


@dataclass(frozen=True, slots=True)
class PipSettings:
    """What a build hands to pip. Keys of `copies` and `binds` are names below /run/build."""

    config: str
    copies: Mapping[str, Path]
    binds: Mapping[str, Path]
    environ: Mapping[str, str]


def config_files(environ: Mapping[str, str], prefix: Path) -> list[Path]:
    """pip's configuration files of this user, lowest precedence first (pip's documented order)."""
    if environ.get("PIP_CONFIG_FILE") == os.devnull:
        return []
    home = Path(environ.get("HOME", "/"))
    xdg = [Path(p) for p in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":") if p]
    files = [base / "pip" / "pip.conf" for base in reversed(xdg)] + [Path("/etc/pip.conf")]
    files += [home / ".pip" / "pip.conf", Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"]
    files.append(prefix / "pip.conf")
    if chosen := environ.get("PIP_CONFIG_FILE"):
        files.append(Path(chosen))
    return [path for path in files if path.is_file()]


def read_settings(files: Iterable[Path], environ: Mapping[str, str]) -> dict[str, str]:
    """The effective settings of `pip install`, by pip's long option names; unreadable files are skipped as pip does."""
    settings: dict[str, str] = {}
    for path in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError):
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                settings.update({key.replace("_", "-").lower(): value for key, value in parser.items(section)})
    for name, value in environ.items():
        if name.startswith("PIP_") and value:
            settings[name[4:].lower().replace("_", "-")] = value
    return {key: value for key, value in settings.items() if key in _PASSED_ON}


def host_settings(environ: Mapping[str, str] | None = None) -> PipSettings:
    """The settings of the machine and user that this process runs as."""
    environ = os.environ if environ is None else environ
    return translate(read_settings(config_files(environ, Path(sys.prefix)), environ), environ)


def translate(settings: Mapping[str, str], environ: Mapping[str, str]) -> PipSettings:
    """Makes `settings` true inside a tree whose /run/build holds the copies and binds that are returned."""
    copies: dict[str, Path] = {}
    binds: dict[str, Path] = {}
    lines = ["[global]", "disable-pip-version-check = true", "root-user-action = ignore"]
    values = dict(settings)
    if "cert" not in values:
        bundles = [environ[name] for name in _BUNDLE_VARIABLES if environ.get(name)]
        values.update({"cert": bundle} if (bundle := next(iter(bundles), "")) else {})
    for key, value in sorted(values.items()):
        kept: list[str] = []
        for word in re.split(r"\s+", value.strip()) if key in _LISTS else [value.strip()]:
            inside = _inside(key, word, copies, binds)
            if inside is not None:
                kept.append(inside)
        if kept:
            lines.append(f"{key} = " + ("\n    ".join(["", *kept]) if key in _LISTS else kept[0]))
    names = [spelling for name in _PROXY_VARIABLES for spelling in (name, name.upper())]
    variables = {name: environ[name] for name in names if environ.get(name)}
    return PipSettings("\n".join(lines) + "\n", copies, binds, variables)


def _inside(key: str, value: str, copies: dict[str, Path], binds: dict[str, Path]) -> str | None:
    """`value` as it reads inside the tree; None if it names something that is not there (pip would only warn)."""
    if key in _FILES:
        path = Path(value).expanduser()
        if not path.is_file():
            return None
        name = f"file{len(copies)}-{path.name}"
        copies[name] = path
        return str(INSIDE / name)
    local = _local_path(key, value)
    if local is None:
        return value
    if not local.exists():
        return None
    # An index's pages link to their files by relative paths that may climb out of the index: bind one level higher.
    folder = local if key == "find-links" or local.parent == Path("/") else local.parent
    if folder.is_file():
        folder = folder.parent
    name = next((known for known, source in binds.items() if source == folder), f"local{len(binds)}")
    binds[name] = folder
    suffix = "" if local == folder else "/" + str(local.relative_to(folder))
    return f"{'' if key == 'find-links' else 'file://'}{INSIDE / name}{suffix}"


def _local_path(key: str, value: str) -> Path | None:
    if value.startswith("file:"):
        return Path(unquote(urlsplit(value).path))
    if key == "find-links" and "://" not in value:
        return Path(value).expanduser().absolute()
    return None
