"""Files of /proc and /sys that describe the machine, as the kernel writes them, with a sandbox's figures. Pure: no I/O.

Figures come by name, in bytes and microseconds, as `Meter` reads them; a name that is absent counts as 0. Numbers are
padded, so that a file keeps its length: it is written over in place, under the eyes of its readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Figures = Mapping[str, int]

_HUGE = 1 << 47
_TICKS = 100
"""Of the kernel's interface to programs, per second: the same on every machine."""


def available(total: int, memory: Figures) -> tuple[int, int]:
    """Bytes that are free, and that would be if caches of files gave way (those of tmpfs do not)."""
    free = max(0, total - memory.get("usage", 0))
    return free, min(total, free + max(0, memory.get("cache", 0) - memory.get("shared", 0)))


def meminfo(total: int, memory: Figures) -> str:
    """/proc/meminfo for a limit of `total` bytes."""
    free, would_be_free = available(total, memory)
    of = memory.get
    slabs = of("slab_reclaimable", 0), of("slab_unreclaimable", 0)
    anonymous, cached = ("active_anonymous", "inactive_anonymous"), ("active_cache", "inactive_cache")
    rows = {
        "MemTotal": total,
        "MemFree": free,
        "MemAvailable": would_be_free,
        "Buffers": 0,
        "Cached": of("cache", 0),
        "SwapCached": 0,
        "Active": of(anonymous[0], 0) + of(cached[0], 0),
        "Inactive": of(anonymous[1], 0) + of(cached[1], 0),
        "Active(anon)": of(anonymous[0], 0),
        "Inactive(anon)": of(anonymous[1], 0),
        "Active(file)": of(cached[0], 0),
        "Inactive(file)": of(cached[1], 0),
        "Unevictable": of("unevictable", 0),
        "Mlocked": 0,
        "SwapTotal": 0,
        "SwapFree": 0,
        "Dirty": of("dirty", 0),
        "Writeback": 0,
        "AnonPages": of("anonymous", 0),
        "Mapped": of("mapped", 0),
        "Shmem": of("shared", 0),
        "KReclaimable": slabs[0],
        "Slab": sum(slabs),
        "SReclaimable": slabs[0],
        "SUnreclaim": slabs[1],
        "KernelStack": of("stacks", 0),
        "PageTables": of("page_tables", 0),
        "NFS_Unstable": 0,
        "Bounce": 0,
        "WritebackTmp": 0,
        "CommitLimit": total,
        "Committed_AS": of("anonymous", 0) + of("shared", 0),
        "VmallocTotal": _HUGE,
        "VmallocUsed": 0,
        "VmallocChunk": 0,
    }
    return "".join(f"{name + ':':<16}{value >> 10:>8} kB\n" for name, value in rows.items())


def vmstat(total: int, memory: Figures, page: int) -> str:
    """/proc/vmstat: what there is of it in a sandbox. `page`: bytes."""
    pages = {
        "nr_free_pages": available(total, memory)[0],
        "nr_inactive_anon": memory.get("inactive_anonymous", 0),
        "nr_active_anon": memory.get("active_anonymous", 0),
        "nr_inactive_file": memory.get("inactive_cache", 0),
        "nr_active_file": memory.get("active_cache", 0),
        "nr_unevictable": memory.get("unevictable", 0),
        "nr_anon_pages": memory.get("anonymous", 0),
        "nr_mapped": memory.get("mapped", 0),
        "nr_file_pages": memory.get("cache", 0),
        "nr_dirty": memory.get("dirty", 0),
        "nr_writeback": 0,
        "nr_shmem": memory.get("shared", 0),
    }
    counts = {
        "pgpgin": 0,
        "pgpgout": 0,
        "pswpin": 0,
        "pswpout": 0,
        "pgfault": memory.get("faults", 0),
        "pgmajfault": memory.get("major_faults", 0),
    }
    rows = {name: value // page for name, value in pages.items()} | counts
    return "".join(f"{name} {value:<20}\n" for name, value in rows.items())


def stat(processors: Sequence[int], cpu: Figures, up_s: float, started_at: float, processes: int) -> str:
    """/proc/stat: processor time used so far, in equal parts of the sandbox's processors; the rest was idle."""
    count = len(processors)
    user, system = (cpu.get(name, 0) * _TICKS // 1_000_000 for name in ("user_us", "system_us"))
    idle = max(0, int(up_s * _TICKS) * count - user - system)

    def row(name: str, share: int) -> str:
        spent = (user // share, 0, system // share, idle // share, 0, 0, 0, 0, 0, 0)
        return f"{name:<5}" + "".join(f" {value:<12}" for value in spent).rstrip() + "\n"

    each = "".join(row(f"cpu{number}", count) for number in processors)
    rest = {"intr": 0, "ctxt": 0, "btime": int(started_at), "processes": processes, "procs_running": 1}
    rows = "".join(f"{name} {value:<12}\n" for name, value in {**rest, "procs_blocked": 0, "softirq": 0}.items())
    return row("cpu", 1) + each + rows


def loadavg(loads: Sequence[float], processes: int, newest: int) -> str:
    """/proc/loadavg. `newest`: the number of the process that was made last."""
    means = " ".join(f"{min(load, 9999.99):.2f}" for load in loads)
    return f"{means} 1/{processes} {newest}".ljust(63) + "\n"


def cpuinfo(processors: Mapping[int, str]) -> str:
    """/proc/cpuinfo of these alone, each given with its own part of it: every one is a core, all in one package."""
    parts = []
    for place, number in enumerate(sorted(processors)):
        own = {"physical id": 0, "siblings": len(processors), "core id": place, "cpu cores": len(processors)}
        rows = (row.partition(":") for row in processors[number].splitlines())
        parts += [
            f"{name}: {own[name.strip()]}" if name.strip() in own else name + colon + rest for name, colon, rest in rows
        ] + [""]
    return "\n".join(parts) + "\n"


def swaps() -> str:
    """/proc/swaps: a sandbox has none."""
    return "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def number_list(numbers: Sequence[int]) -> str:
    """As in /sys/devices/system/cpu/online: `0-3,8`."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(f"{first}-{last}" if first != last else f"{first}" for first, last in ranges) + "\n"
