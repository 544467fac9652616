"""What a SandboxConfig asks of a sandbox: mapped onto the SDK's arguments, or refused with the reason. Pure.

    honoured elsewhere   timeout, keep_runtime_alive, pause_closed_runtimes, close_delay, rm_all_containers, …
    mapped here          template, key, request time limits, network, volumes, environment, GPU and size as templates
    refused here         what would need the host's Docker, and what would be ignored to the user's surprise
   warned of here       settings of other kinds of runtime: a warning each, when they are not at their default

The table in docs/runtime.md says it field by field; a test keeps both complete.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.runtime.config import SandboxConfig

DEFAULT_TEMPLATE = "base"
JUPYTER_TEMPLATE = "code-interpreter-v1"
DEFAULT_IMAGES = re.compile(r"(docker\.io/)?nikolaik/python-nodejs(:.*)?")
"""OpenHands' own default: nobody asked for that image."""

FACTORS = (1, 2, 4, 8)
PLATFORMS = {"linux/amd64": "x86_64", "linux/x86_64": "x86_64", "linux/arm64": "aarch64", "linux/aarch64": "aarch64"}
MOUNT_MODES = ("rw", "ro")

WARNED = {
    "remote_runtime_api_url": "it names OpenHands' own remote service; E2B_API_URL or E2B_DOMAIN name this one",
    "local_runtime_url": "it belongs to another kind of runtime; ports are reached by `get_host`",
    "runtime_binding_address": "ports are bound inside the sandbox and reached through its host names",
    "force_rebuild_runtime": "templates are built ahead of time: `atoll template build`",
    "trusted_dirs": "they are the terminal client's; a sandbox trusts its own workspace",
}
"""Field → why it has no meaning here; harmless, so only warned of."""

REFUSED = {
    "remote_runtime_class": "the isolation tier is the server's choice: `atoll serve --isolation …`",
    "use_host_network": "a sandbox never shares the host's network; use `get_host` to reach its ports",
    "additional_networks": "there are no Docker networks to join; what may be reached is the sandbox's network policy",
    "runtime_extra_build_args": "nothing is built at the start of a runtime; build a template with these arguments",
    "browsergym_eval_env": "evaluations of BrowserGym run in its own environment, not in a sandbox's browser",
}
"""Field → why it cannot be done; ignoring it would surprise, so it is an error."""


@dataclass(frozen=True)
class HostCopy:
    """A directory or file of the host that is copied into the sandbox when it begins."""

    source: str
    target: str


@dataclass(frozen=True)
class SandboxOptions:
    """What a sandbox is made with. `create` are keyword arguments of the SDK's create call beside the usual ones.

    `connection` are the SDK's connection parameters that the configuration sets. `machine` is what `uname -m` has to
    say, None for any. `prepare` is a command line that root runs once in a new sandbox.
    """

    template: str
    connection: Mapping[str, Any] = field(default_factory=dict, repr=False)
    create: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What it is asked for beside that; a label without effect on a platform that is not Atoll."""
    copies: tuple[HostCopy, ...] = ()
    envs: Mapping[str, str] = field(default_factory=dict, repr=False)
    machine: str | None = None
    prepare: str | None = None
    warnings: tuple[str, ...] = ()


def sandbox_options(config: SandboxConfig, template: str | None = None) -> SandboxOptions:
    """Reads the whole configuration. `template` is the caller's own choice and wins. Raises ValueError, OSError.

    The message of a ValueError names the field, why it cannot be done, and what to do.
    """
    defaults = SandboxConfig()
    for name, why in REFUSED.items():
        if getattr(config, name) not in (getattr(defaults, name), None, [], ""):
            raise _refusal(name, getattr(config, name), why)
    warnings = tuple(
        f"sandbox.{name} has no meaning here: {why}"
        for name, why in WARNED.items()
        if getattr(config, name) not in (getattr(defaults, name), None)
    )
    kwargs, kwargs_envs = _docker_kwargs(config.docker_runtime_kwargs or {})
    volumes, copies = _volumes(config.volumes)
    if volumes:
        kwargs["volume_mounts"] = volumes
    if config.platform is not None and config.platform not in PLATFORMS:
        raise _refusal("platform", config.platform, f"known are {', '.join(PLATFORMS)}")
    connection: dict[str, Any] = {"request_timeout": float(max(1, config.remote_runtime_api_timeout))}
    if config.api_key:
        connection["api_key"] = config.api_key
    return SandboxOptions(
        template=_template(config, template),
        connection=connection,
        create=kwargs,
        metadata=_gpu(config),
        copies=copies,
        envs=kwargs_envs,
        machine=PLATFORMS[config.platform] if config.platform else None,
        prepare=config.runtime_extra_deps or None,
        warnings=warnings,
    )


def template_of_toml(path: Path) -> str:
    """The template that an `e2b.toml` names: its id, else its name. Raises ValueError, OSError."""
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
    for name in ("template_id", "template_name"):
        if isinstance(found := data.get(name), str) and found:
            return found
    raise ValueError(f"{path} names no template: it has neither `template_id` nor `template_name`")


def _template(config: SandboxConfig, chosen: str | None) -> str:
    name = chosen or config.runtime_container_image
    if name is None:
        image = config.base_container_image
        if image is not None and not DEFAULT_IMAGES.fullmatch(image):
            raise _refusal(
                "base_container_image",
                image,
                "images are not pulled at the start of a runtime; build a template from it and name that "
                "template in `runtime_container_image`",
            )
        name = DEFAULT_TEMPLATE
    elif name.endswith(".toml"):
        name = template_of_toml(Path(name))
    if config.enable_gpu:
        name += "-gpu"
    factor = config.remote_runtime_resource_factor
    if factor not in FACTORS:
        raise _refusal("remote_runtime_resource_factor", factor, f"it is one of {', '.join(map(str, FACTORS))}")
    return name if factor == 1 else f"{name}-x{factor}"


def _gpu(config: SandboxConfig) -> dict[str, str]:
    """How many is the template's word (`NAME-gpu`), which ones is the caller's."""
    if not config.cuda_visible_devices:
        return {}
    if not config.enable_gpu:
        raise _refusal("cuda_visible_devices", config.cuda_visible_devices, "it chooses among GPUs: set enable_gpu too")
    names = ",".join(name.strip() for name in config.cuda_visible_devices.split(","))
    return {"atoll.gpu": f"index:{names}"}


def missing_template_hint(config: SandboxConfig, template: str) -> str | None:
    """What to do when a template that the configuration implies is not there; None if it implies none."""
    factor = config.remote_runtime_resource_factor
    if factor == 1 and not config.enable_gpu:
        return None
    size = f" with {factor} times the processors and memory" if factor != 1 else ""
    gpu = " and a GPU" if config.enable_gpu else ""
    return (
        "processors, memory and GPU belong to the template: "
        f"sandbox.remote_runtime_resource_factor and sandbox.enable_gpu choose one named {template!r}. "
        f"Build it{size}{gpu}: Template.build(…, cpu_count=…, memory_mb=…)"
    )


def _docker_kwargs(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    create: dict[str, Any] = {}
    envs: dict[str, str] = {}
    for name, value in given.items():
        if name == "environment":
            pairs = value if isinstance(value, Mapping) else dict(str(line).partition("=")[::2] for line in value)
            envs = {str(key): str(item) for key, item in pairs.items()}
        elif name == "network_mode" and value == "none":
            create["allow_internet_access"] = False
        elif name in ("cpu_period", "cpu_quota", "nano_cpus", "mem_limit", "memswap_limit"):
            raise _refusal(
                f"docker_runtime_kwargs[{name!r}]", value, "limits belong to the template: use a smaller or larger one"
            )
        elif name not in ("auto_remove", "detach", "name", "labels", "tty", "stdin_open"):
            why = "there is no Docker; of its options only `environment` and `network_mode='none'` are carried over"
            raise _refusal(f"docker_runtime_kwargs[{name!r}]", value, why)
    return create, envs


def _volumes(text: str | None) -> tuple[dict[str, str], tuple[HostCopy, ...]]:
    """('path' → name of a volume), and what is copied from the host, of `source:target[:mode]`, comma-separated."""
    volumes: dict[str, str] = {}
    copies = []
    for item in filter(None, ((text or "").split(","))):
        parts = item.strip().split(":")
        if len(parts) not in (2, 3) or not parts[0] or not parts[1].startswith("/"):
            raise _refusal("volumes", item, "each one is source:/absolute/target[:mode]")
        source, target, mode = parts[0], parts[1], parts[2] if len(parts) == 3 else "rw"
        if mode not in MOUNT_MODES:
            raise _refusal("volumes", item, f"the mode is one of {', '.join(MOUNT_MODES)}")
        if not source.startswith(("/", ".", "~")):
            if mode == "ro":
                raise _refusal("volumes", item, "a volume is mounted for reading and writing")
            volumes[target] = source
        elif mode == "ro":
            copies.append(HostCopy(str(Path(source).expanduser()), target))
        else:
            why = "a sandbox does not write to the host; add `:ro` to have it copied in, or name a volume"
            raise _refusal("volumes", item, why)
    return volumes, tuple(copies)


def _refusal(name: str, value: object, why: str) -> ValueError:
    return ValueError(f"sandbox.{name} = {value!r} cannot be done here: {why}")
