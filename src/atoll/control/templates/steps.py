"""What the steps of a template build mean: pure. A step is one layer, known by all that could make it another one.

    type      args                                   in the build's sandbox
    RUN       command, [user]                        `bash -l -c`, as the user so far or as the one named
    COPY      source pattern, target, owner, mode    the uploaded archive is unpacked inside and moved (`COPY_SCRIPT`)
    ENV       name, value, …                         `$NAME` and `${NAME}` are replaced, nothing else is
    WORKDIR   path                                   made where it is missing
    USER      name, ["true": may use sudo]           made where it is missing

Types, arguments and their meaning are those of E2B's builder (`e2b.template.types`).
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from atoll.model.devices import parse_gpu
from atoll.model.errors import InvalidRequest
from atoll.model.template import Template

GPU_VARIABLE = "ATOLL_GPU"
"""Set by a template's ENV, its sandboxes ask for GPUs as by metadata `atoll.gpu`: a build has no metadata."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_STEPS = 256
MAX_TEXT = 256 * 1024
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_OWNER = re.compile(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]*)?")
_MODE = re.compile(r"[0-7]{3,4}")
FILES_HASH = re.compile(r"[0-9a-f]{64}")
"""What names an uploaded archive: a SHA-256."""
_TYPES = {"RUN": (1, 2), "COPY": (2, 4), "ENV": (2, 2 * 512), "WORKDIR": (1, 1), "USER": (1, 2)}

COPY_SCRIPT = r"""
set -eu
source=$1 target=$2 owner=$3 mode=$4 archive=$5
work=$(mktemp -d /tmp/.copy.XXXXXXXX)
trap 'rm -rf "$work" "$archive"' EXIT
LC_ALL=C read -rN2 head <"$archive" || true
zip=; [ "$head" != $'\x1f\x8b' ] || zip=z
tar -"${zip}"xf "$archive" -C "$work" --no-same-owner
merge=(); if tar --version 2>/dev/null | grep -q GNU; then merge=(--keep-directory-symlink --no-overwrite-dir); fi
cd "$work"
shopt -s nullglob dotglob globstar
IFS=
if [ -e "$source" ] || [ -L "$source" ]; then found=("$source"); else found=($source); fi
[ ${#found[@]} -gt 0 ] || { echo "COPY: nothing matches '$source'" >&2; exit 1; }
case $target in */) into=1 ;; *) into= ;; esac
[ ${#found[@]} -gt 1 ] && into=1
for one in "${found[@]}"; do
  chown -hR "$owner" "$one"
  [ -z "$mode" ] || chmod -R "$mode" "$one"
  if [ -d "$one" ] && [ ! -L "$one" ]; then
    [ -d "$target" ] || { mkdir -p "$target"; chown "$owner" "$target"; }
    tar -C "$one" -cf - . | tar -C "$target" -xpf - "${merge[@]}"
  elif [ -n "$into" ] || [ -d "$target" ]; then
    [ -d "$target" ] || { mkdir -p "$target"; chown "$owner" "$target"; }
    mv -f -- "$one" "${target%/}/"
  else
    mkdir -p "$(dirname "$target")"
    mv -fT -- "$one" "$target"
  fi
done
"""
"""As root, by bash: source pattern, absolute target, owner, mode (may be empty), archive. The tar may be busybox's."""

WORKDIR_SCRIPT = r"""
set -eu
path=$1 owner=$2 first=
while [ ! -e "$path" ]; do first=$path; path=$(dirname "$path"); done
mkdir -p "$1"
[ -z "$first" ] || chown -R "$owner:" "$first"
"""

USER_SCRIPT = r"""
set -eu
if id -u "$1" >/dev/null 2>&1; then
  :
elif command -v useradd >/dev/null; then
  useradd --create-home --shell /bin/bash "$1"
else
  number=1000
  while grep -q "^[^:]*:[^:]*:$number:" /etc/passwd /etc/group; do number=$((number + 1)); done
  echo "$1:x:$number:" >>/etc/group
  echo "$1:x:$number:$number::/home/$1:/bin/bash" >>/etc/passwd
  mkdir -p "/home/$1"
  chown "$number:$number" "/home/$1"
fi
if [ "${2:-}" = true ]; then
  mkdir -p /etc/sudoers.d
  printf '%s ALL=(ALL:ALL) NOPASSWD: ALL\n' "$1" >"/etc/sudoers.d/$1"
  chmod 0440 "/etc/sudoers.d/$1"
fi
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction, checked. `files_hash` names the archive of a COPY."""

    type: str
    args: tuple[str, ...]
    force: bool = False
    files_hash: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """What steps pass on to the next one, and in the end to the template's sandboxes. `workdir` None: the home."""

    user: str = "user"
    workdir: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """Plain data, equal for equal settings."""
        return {"user": self.user, "workdir": self.workdir, "env": dict(self.env)}


@dataclass(frozen=True, slots=True)
class Command:
    """What a step runs inside. `archive`: the upload of this hash, whose path inside is the last argument."""

    argv: tuple[str, ...]
    user: str
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    archive: str = ""


def check_steps(steps: Sequence[Step]) -> None:
    """Raises InvalidRequest naming the step by its number, from 1."""
    if len(steps) > MAX_STEPS:
        raise InvalidRequest(f"a template has at most {MAX_STEPS} steps, not {len(steps)}")
    for number, step in enumerate(steps, 1):
        if step.type not in _TYPES:
            raise InvalidRequest(f"step {number}: {step.type[:40]!r} is no step; there are {', '.join(sorted(_TYPES))}")
        least, most = _TYPES[step.type]
        if not least <= len(step.args) <= most:
            raise InvalidRequest(f"step {number}: {step.type} takes {least} to {most} arguments, not {len(step.args)}")
        if any("\0" in arg for arg in step.args) or sum(map(len, step.args)) > MAX_TEXT:
            raise InvalidRequest(f"step {number}: an argument of {step.type} is too long or holds a NUL character")
        wrong = _wrong(step)
        if wrong:
            raise InvalidRequest(f"step {number}: {wrong}")


def _wrong(step: Step) -> str:
    first = step.args[0]
    match step.type:
        case "COPY":
            if not FILES_HASH.fullmatch(step.files_hash):
                return "COPY needs filesHash, a SHA-256 in lower-case hex"
            if first.startswith("/") or ".." in first.split("/"):
                return f"COPY: the source {first[:100]!r} leaves the build's context"
            if len(step.args) > 2 and step.args[2] and not _OWNER.fullmatch(step.args[2]):
                return f"COPY: {step.args[2][:100]!r} is no owner"
            if len(step.args) > 3 and step.args[3] and not _MODE.fullmatch(step.args[3]):
                return f"COPY: {step.args[3][:100]!r} is no mode, such as 0755"
        case "ENV":
            if len(step.args) % 2:
                return "ENV takes pairs of a name and a value"
            for name, value in zip(step.args[::2], step.args[1::2], strict=True):
                if not _NAME.fullmatch(name):
                    return f"ENV: {name[:100]!r} is not a name of an environment variable"
                if name == GPU_VARIABLE:
                    try:
                        parse_gpu(value, GPU_VARIABLE)
                    except InvalidRequest as error:
                        return error.message
        case "USER":
            if not _USER.fullmatch(first):
                return f"USER: {first[:100]!r} is not a user's name"
        case "RUN":
            if len(step.args) > 1 and step.args[1] and not _USER.fullmatch(step.args[1]):
                return f"RUN: {step.args[1][:100]!r} is not a user's name"
        case _:
            pass
    return ""


def after(step: Step, settings: Settings) -> Settings:
    """The settings once the step is done."""
    match step.type:
        case "ENV":
            pairs = zip(step.args[::2], step.args[1::2], strict=True)
            env = dict(settings.env)
            for name, value in pairs:
                env[name] = expand(value, settings)
            return replace(settings, env=env)
        case "WORKDIR":
            return replace(settings, workdir=posixpath.normpath(posixpath.join(settings.workdir or "/", step.args[0])))
        case "USER":
            return replace(settings, user=step.args[0])
        case _:
            return settings


def gpu_of(settings: Settings, base: Template) -> str | None:
    """What its sandboxes ask for (`Template.gpu`): by the variable that a step has set, else as what it stands on."""
    value = settings.env.get(GPU_VARIABLE)
    return value if value and value != base.env_vars.get(GPU_VARIABLE) else base.gpu


def expand(text: str, settings: Settings) -> str:
    """`$NAME` and `${NAME}` replaced by what is set, or by nothing. Quotes and `$(…)` stay as they are."""
    home = home_of(settings.user)
    known = {"PATH": DEFAULT_PATH, "HOME": home, "USER": settings.user, **settings.env}
    return _VARIABLE.sub(lambda found: known.get(found[1] or found[2], ""), text)


def home_of(user: str) -> str:
    """Where Debian's useradd puts it."""
    return "/root" if user == "root" else f"/home/{user}"


def command(step: Step, settings: Settings) -> Command | None:
    """What is run for the step, given the settings before it. None: the step changes no file."""
    match step.type:
        case "RUN":
            user = step.args[1] if len(step.args) > 1 and step.args[1] else settings.user
            return shell(step.args[0], replace(settings, user=user))
        case "COPY":
            source, target, owner, mode = (*step.args, "", "")[:4]
            base = settings.workdir or home_of(settings.user)
            absolute = posixpath.join(base, expand(target, settings))
            owner = owner or f"{settings.user}:{settings.user}"
            return Command(
                ("/bin/bash", "-c", COPY_SCRIPT, "copy", source, absolute, owner, mode),
                "root",
                "/",
                archive=step.files_hash,
            )
        case "WORKDIR":
            path = after(step, settings).workdir or "/"
            return Command(("/bin/bash", "-c", WORKDIR_SCRIPT, "workdir", path, settings.user), "root", "/")
        case "USER":
            return Command(("/bin/bash", "-c", USER_SCRIPT, "user", *step.args), "root", "/")
        case _:
            return None


def shell(text: str, settings: Settings) -> Command:
    """A line for a login shell, as a sandbox of these settings runs it."""
    return Command(("/bin/bash", "-l", "-c", text), settings.user, settings.workdir, settings.env)


def base_key(team_id: str, base: str) -> str:
    """The id of what a build stands on: `base` names one build of a template, or an image."""
    return _digest(["base", team_id, base])


def layer_key(before: str, step: Step, settings: Settings) -> str:
    """The id of the image that the step makes of the image `before`. Of one team only: an archive's hash is a client's
    word, and nobody shall be given what somebody else has put under it."""
    return _digest([before, step.type, list(step.args), step.files_hash, settings.as_json()])


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def describe(step: Step) -> str:
    """One line for the build's log."""
    shown = " ".join(step.args if step.type != "COPY" else step.args[:2])
    first, _, rest = shown.partition("\n")
    return f"{step.type} {first[:300]}{' …' if rest or len(first) > 300 else ''}"
