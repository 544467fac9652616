"""Many runtimes at once, each with a small job, as OpenHands' evaluation has them."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from atoll.runtime import E2BRuntime
from atoll.stress.measure import Outcome, Series, spread
from atoll.stress.work import Sizes, run, timed


def concurrent(sizes: Sizes) -> Outcome:
    """Many runtimes at once, each with a small job from beginning to end"""
    with tempfile.NamedTemporaryFile("w", prefix="atoll-stress-", suffix=".txt") as sent:
        sent.write("dummy\n" * 100)
        sent.flush()
        begin = time.monotonic()
        with ThreadPoolExecutor(sizes.at_once) as pool:
            jobs = list(pool.map(lambda number: _job(number, sent.name, begin, sizes.template), range(sizes.jobs)))
        wall = time.monotonic() - begin
    good = [job for job in jobs if not job.error]
    errors = sorted({job.error for job in jobs if job.error})
    figures = {
        "at_once": float(sizes.at_once),
        "jobs": float(sizes.jobs),
        "success_rate": len(good) / sizes.jobs,
        "jobs_per_s": sizes.jobs / wall,
        **spread("job_s", [job.seconds for job in good]),
        **spread("connect_s", [job.connect_s for job in good]),
        **spread("action_ms", [ms for job in good for ms in job.actions_ms]),
    }
    ended = sorted(job.ended for job in jobs)
    return Outcome(
        figures,
        [
            Series("time of a job", "s", [job.seconds for job in jobs], "job"),
            Series("jobs that are done", "jobs", list(range(1, len(ended) + 1)), "seconds", ended),
        ],
        [f"jobs that failed, of {len(jobs)}: {len(jobs) - len(good)}; {error}" for error in errors[:5]],
    )


@dataclass(frozen=True, slots=True)
class _Job:
    seconds: float
    connect_s: float
    actions_ms: list[float]
    ended: float
    error: str = ""


def _job(number: int, file: str, began: float, template: str | None) -> _Job:
    begin = time.monotonic()
    connect_s, took = 0.0, []
    error = ""
    try:
        with E2BRuntime(sid=f"stress-{number}", template=template, soft_timeout_s=30) as runtime:
            connect_s = time.monotonic() - begin
            run(runtime, "export USER=$(whoami); echo USER=${USER}")
            run(runtime, "sudo mkdir -p /dummy_dir")
            runtime.copy_to(file, "/dummy_dir/")
            for _ in range(10):
                found, seconds = timed(lambda: run(runtime, "ls -lah /dummy_dir"))
                took.append(seconds * 1e3)
                if found.exit_code != 0 or Path(file).name not in found.content:
                    raise RuntimeError(f"ls: exit code {found.exit_code}: {found.content[:200]}")
    except Exception as failure:
        error = f"{type(failure).__name__}: {str(failure)[:300]}"
    end = time.monotonic()
    return _Job(end - begin, connect_s, took, end - began, error)
