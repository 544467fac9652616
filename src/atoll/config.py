"""Settings: frozen, read once at start from an environ that is passed in. Every setting is documented here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from atoll.model.capacity import Amounts, Wishes
from atoll.model.errors import InvalidRequest


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """`ATOLL_DATA_DIR`, else `$XDG_DATA_HOME/atoll`, else `~/.local/share/atoll`."""
    if chosen := environ.get("ATOLL_DATA_DIR"):
        return Path(chosen).absolute()
    base = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME", "/")) / ".local" / "share")
    return Path(base) / "atoll"


def _one_of(environ: Mapping[str, str], name: str, known: tuple[str, ...]) -> str:
    value = environ.get(name) or known[0]
    if value not in known:
        raise InvalidRequest(f"{name} must be one of {', '.join(known)}, not {value!r}")
    return value


def _positive(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, str(default))
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) == 0:
        raise InvalidRequest(f"{name} must be a positive number, not {text!r}")
    return int(text)


def _list(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in environ.get(name, "").split(",") if part.strip())


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    return Path(environ[name]).absolute() if environ.get(name) else None


def _most(environ: Mapping[str, str], name: str) -> int | None:
    return _positive(environ, name, 1) if environ.get(name) else None


def _amounts(environ: Mapping[str, str], kind: str) -> Amounts:
    names = ("CPU", "MEMORY_MIB", "DISK_MIB", "PIDS")
    return Amounts(*(_most(environ, f"ATOLL_{kind}_{name}") for name in names))


_DISK_SETTINGS = (
    "ATOLL_DISK_RESERVE_MIB",
    "ATOLL_VOLUME_MIB",
    "ATOLL_TOTAL_VOLUMES_MIB",
    "ATOLL_TEAM_IMAGES_MIB",
)


def _wishes(environ: Mapping[str, str]) -> Wishes:
    at_once = Amounts(memory_mib=_most(environ, "ATOLL_USED_MEMORY_MIB"), pids=_most(environ, "ATOLL_USED_PIDS"))
    maximum, team, total = (_amounts(environ, kind) for kind in ("MAX", "TEAM", "TOTAL"))
    disk = (_most(environ, name) for name in _DISK_SETTINGS)
    return Wishes(maximum, team, total, at_once, *disk)


def warm_wishes(texts: Iterable[str]) -> Mapping[str, int]:
    """`TEMPLATE=N` each. Raises InvalidRequest."""
    found: dict[str, int] = {}
    for text in texts:
        name, _, count = text.rpartition("=")
        if not name or not (count.isascii() and count.isdigit()) or len(count) > 4:
            raise InvalidRequest(f"warm sandboxes are asked for as TEMPLATE=N, not {text[:100]!r}")
        found[name] = int(count)
    return found


@dataclass(frozen=True, slots=True)
class Settings:
    """What `atoll serve` runs on.

    ATOLL_DATA_DIR       where state, sandboxes and templates live
    ATOLL_TEMPLATES_DIR  templates only (default DATA_DIR/templates): shared by several servers, read-only for them
    ATOLL_TOOLS_DIR      programs that `atoll doctor --fix` has unpacked (default DATA_DIR/tools)
    ATOLL_HOST, ATOLL_PORT   where to listen (127.0.0.1:3000)
    ATOLL_ISOLATION      auto, or the name of a tier
    ATOLL_RUNSC, ATOLL_RUNSC_PLATFORM, ATOLL_GVISOR_READY   the gvisor tier's own: which runsc, on which platform
                         (systrap), and how many sandboxes it keeps started ahead of need (2)
    ATOLL_API_KEYS       comma list; without it one key is generated into DATA_DIR/api-key
    ATOLL_DATABASE_URL   SQLAlchemy URL (default: SQLite in DATA_DIR/control); postgresql+asyncpg://USER:PASSWORD@HOST/DB
                         needs the extra `atoll[postgres]`
    ATOLL_DOMAIN         host names `{port}-{id}.{domain}` and `api.{domain}` are routed under this domain
    ATOLL_TLS            `auto`: the domain also over TLS (its port, else 443), by a CA of our own in DATA_DIR/tls
    ATOLL_TLS_CERT, ATOLL_TLS_KEY   PEM files for the domain and *.domain to use instead
    ATOLL_LOG_LEVEL, ATOLL_LOG_FORMAT   info; `console` or `json`
    ATOLL_MAX_TIMEOUT_S  the longest that a sandbox may be asked to live (86400)
    ATOLL_MAX_SANDBOXES  how many a team may have at once (1000)
    ATOLL_MAX_CPU, ATOLL_MAX_MEMORY_MIB, ATOLL_MAX_DISK_MIB, ATOLL_MAX_PIDS   the largest that a sandbox may be (as its
                         template, or metadata `atoll.cpu`, `atoll.memory`, `atoll.disk`, `atoll.pids`, asks for); this
                         and the next three lines are derived from the machine unless set (docs/limits.md)
    ATOLL_TEAM_CPU, ATOLL_TEAM_MEMORY_MIB, ATOLL_TEAM_DISK_MIB, ATOLL_TEAM_PIDS   what the limits of all sandboxes of
                         one team may add up to
    ATOLL_TOTAL_CPU, ATOLL_TOTAL_MEMORY_MIB, ATOLL_TOTAL_DISK_MIB, ATOLL_TOTAL_PIDS   the same of the whole machine
    ATOLL_USED_MEMORY_MIB, ATOLL_USED_PIDS   what all sandboxes together may use at a time, whatever their limits say
    ATOLL_DISK_RESERVE_MIB   how much of the data directory's file system sandboxes never get
    ATOLL_VOLUME_MIB     how much each volume can hold (10240, or what the machine has)
    ATOLL_TOTAL_VOLUMES_MIB  what the sizes of all volumes may add up to
    ATOLL_TEAM_IMAGES_MIB  what templates, snapshots and paused sandboxes of one team may take of the disk
                         (half of the file system)
    ATOLL_MAX_OUTPUT_MIB_S  how much a sandbox may send to all its clients in a second: output of commands, files, ports
                         (no limit: only the pace of each client holds it up)
    ATOLL_MAX_NETWORK_MIB_S  how much may pass between a sandbox and the world in a second, both ways together; a call
                         may ask for less by metadata `atoll.network_mib_s` (no limit)
    ATOLL_MAX_DISK_MIB_S  how fast a sandbox's disk is read and written, each; a call may ask for less by metadata
                         `atoll.disk_mib_s` (no limit)
    ATOLL_GPU_SHARE      how many sandboxes may have one GPU at the same time (1: it is one sandbox's alone)
    ATOLL_CDI_DIRS       comma list of directories with CDI files, which say what GPUs there are (/etc/cdi,/var/run/cdi)
    ATOLL_AUDIT          what the audit log has of API keys: `changes`, `all` (reads too), or `off` (changes)
    ATOLL_AUDIT_MIB      how large it may be, all files together; the oldest goes (256)
    ATOLL_WEBHOOK_ALLOW_PRIVATE  comma list of networks (10.0.0.0/8) that webhooks may reach besides public addresses
    ATOLL_EGRESS_ALLOW_PRIVATE   comma list of private networks (10.1.0.0/16) that sandboxes may reach; the host's own
                         address only where it stands there alone
    ATOLL_REGISTRY_ALLOW_PRIVATE  the same for registries of images, which template builds alone then reach
    ATOLL_INSECURE_REGISTRIES  comma list of registries (10.1.0.5:5000, or a host for all its ports) that are
                         spoken to without TLS
    ATOLL_PREPARE_TEMPLATES  comma list of built-in templates that a server builds in the background when it starts and
                         they are missing (base,code-interpreter-v1); others, and these with an empty list, are built
                         when a create first asks for them
    ATOLL_BUILD_TIMEOUT_S, ATOLL_TEAM_BUILDS   how long one build of a template may take (3600), and how many of one
                         team run at once (3; others wait, and 4 of all teams run)
    ATOLL_TEMPLATE_WAIT_S  how long a create waits for that before it is refused for now (50)
    ATOLL_NODES          comma list of ID=HOST:PORT: nodes on other machines (docs/nodes.md)
    ATOLL_OBJECTS        file:///DIRECTORY or s3://BUCKET/PREFIX?endpoint=URL: where images and paused sandboxes lie for
                         other nodes; the same on the server and on every node (none: they stay where they are made)
    ATOLL_CLUSTER        ray://HOST:PORT: each machine of that Ray cluster is a node (docs/nodes.md); `local`: a
                         cluster of this machine alone, started with the server
    ATOLL_AGENT_DATA_DIR, ATOLL_AGENT_PORT  read by the agent that Ray keeps on a machine, from its raylet's own:
                         where its data lies (XDG_DATA_HOME/atoll-agent), and where it listens (a free port, then kept)
    ATOLL_WARM           comma list `TEMPLATE=N`: how many started sandboxes of a template wait for a create, so that
                         what its start command runs answers at once; another team's template as `team/name` (none)
    ATOLL_NAME_SERVERS   comma list of addresses that sandboxes' DNS questions are put to (default: the host's own)
    ATOLL_CLOCK_OFFSET_FILE  a file below DATA_DIR/control with the seconds by which the control plane takes its clock
                         to be off, read each time: for tests of clocks that jump (none)
    """

    data_dir: Path
    templates_dir: Path
    tools_dir: Path | None = None
    host: str = "127.0.0.1"
    port: int = 3000
    isolation: str = "auto"
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    database_url: str | None = field(default=None, repr=False)
    domain: str | None = None
    tls: str = "off"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    log_level: str = "info"
    log_format: str = "console"
    max_timeout_s: int = 86400
    max_sandboxes: int = 1000
    sizes: Wishes = field(default_factory=Wishes)
    """What the operator set of sizes and sums: ATOLL_MAX_…, ATOLL_TEAM_…, ATOLL_TOTAL_…, ATOLL_USED_…, the reserve."""
    max_output_mib_s: int | None = None
    max_network_mib_s: int | None = None
    max_disk_mib_s: int | None = None
    gpu_share: int = 1
    cdi_dirs: tuple[Path, ...] = (Path("/etc/cdi"), Path("/var/run/cdi"))
    audit: str = "changes"
    audit_mib: int = 256
    webhook_allow_private: tuple[str, ...] = ()
    egress_allow_private: tuple[str, ...] = ()
    registry_allow_private: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    name_servers: tuple[str, ...] = ()
    prepare_templates: tuple[str, ...] = ("base", "code-interpreter-v1")
    build_timeout_s: int = 3600
    team_builds: int = 3
    template_wait_s: int = 50
    nodes: tuple[str, ...] = ()
    cluster: str = ""
    objects: str = field(default="", repr=False)
    warm: Mapping[str, int] = field(default_factory=dict)
    clock_offset_file: Path | None = None
    keep_sandboxes: bool = True
    """On a clean stop sandboxes go on running and the next server adopts them; False ends them (embedded, tests)."""

    @staticmethod
    def from_environ(environ: Mapping[str, str]) -> Settings:
        """Raises InvalidRequest naming the variable that is wrong."""
        data_dir = default_data_dir(environ)
        port_text = environ.get("ATOLL_PORT", "3000")
        if not port_text.isdigit() or int(port_text) > 65535:
            raise InvalidRequest(f"ATOLL_PORT must be a port number, not {port_text!r}")
        return Settings(
            data_dir=data_dir,
            templates_dir=Path(environ.get("ATOLL_TEMPLATES_DIR") or data_dir / "templates").absolute(),
            tools_dir=Path(environ.get("ATOLL_TOOLS_DIR") or data_dir / "tools").absolute(),
            host=environ.get("ATOLL_HOST", "127.0.0.1"),
            port=int(port_text),
            isolation=environ.get("ATOLL_ISOLATION", "auto"),
            api_keys=_list(environ, "ATOLL_API_KEYS"),
            database_url=environ.get("ATOLL_DATABASE_URL"),
            domain=environ.get("ATOLL_DOMAIN"),
            tls=environ.get("ATOLL_TLS", "off"),
            tls_cert=_path(environ, "ATOLL_TLS_CERT"),
            tls_key=_path(environ, "ATOLL_TLS_KEY"),
            log_level=environ.get("ATOLL_LOG_LEVEL", "info"),
            log_format=environ.get("ATOLL_LOG_FORMAT", "console"),
            max_timeout_s=_positive(environ, "ATOLL_MAX_TIMEOUT_S", 86400),
            max_sandboxes=_positive(environ, "ATOLL_MAX_SANDBOXES", 1000),
            sizes=_wishes(environ),
            max_output_mib_s=_most(environ, "ATOLL_MAX_OUTPUT_MIB_S"),
            max_network_mib_s=_most(environ, "ATOLL_MAX_NETWORK_MIB_S"),
            max_disk_mib_s=_most(environ, "ATOLL_MAX_DISK_MIB_S"),
            gpu_share=_positive(environ, "ATOLL_GPU_SHARE", 1),
            cdi_dirs=tuple(map(Path, _list({"ATOLL_CDI_DIRS": "/etc/cdi,/var/run/cdi", **environ}, "ATOLL_CDI_DIRS"))),
            audit=_one_of(environ, "ATOLL_AUDIT", ("changes", "all", "off")),
            audit_mib=_positive(environ, "ATOLL_AUDIT_MIB", 256),
            webhook_allow_private=_list(environ, "ATOLL_WEBHOOK_ALLOW_PRIVATE"),
            egress_allow_private=_list(environ, "ATOLL_EGRESS_ALLOW_PRIVATE"),
            registry_allow_private=_list(environ, "ATOLL_REGISTRY_ALLOW_PRIVATE"),
            insecure_registries=_list(environ, "ATOLL_INSECURE_REGISTRIES"),
            name_servers=_list(environ, "ATOLL_NAME_SERVERS"),
            nodes=_list(environ, "ATOLL_NODES"),
            cluster=environ.get("ATOLL_CLUSTER", ""),
            objects=environ.get("ATOLL_OBJECTS", ""),
            prepare_templates=_list(
                {"ATOLL_PREPARE_TEMPLATES": "base,code-interpreter-v1", **environ}, "ATOLL_PREPARE_TEMPLATES"
            ),
            build_timeout_s=_positive(environ, "ATOLL_BUILD_TIMEOUT_S", 3600),
            team_builds=_positive(environ, "ATOLL_TEAM_BUILDS", 3),
            template_wait_s=_positive(environ, "ATOLL_TEMPLATE_WAIT_S", 50),
            warm=warm_wishes(_list(environ, "ATOLL_WARM")),
            clock_offset_file=_path(environ, "ATOLL_CLOCK_OFFSET_FILE"),
        )


def documented() -> Iterator[tuple[Sequence[str], str]]:
    """(variables, what they mean) of each entry in the table of `Settings`' docstring."""
    names: Sequence[str] = ()
    text: list[str] = []
    for line in (Settings.__doc__ or "").splitlines():
        head, _, rest = line.strip().partition("  ")
        if line.startswith("    ATOLL_"):
            if names:
                yield names, " ".join(text)
            names, text = head.split(", "), [rest.strip()]
        elif names and line.strip():
            text.append(line.strip())
    if names:
        yield names, " ".join(text)
