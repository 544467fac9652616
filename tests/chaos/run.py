"""One run: actors live, the killer kills, and then everything that was acknowledged is looked for.

    .venv/bin/python tests/chaos/run.py --tier namespaces --seed 7 --faults 500      (`make chaos`)

The same seed gives the same lives and the same faults; when exactly a fault strikes is the machine's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

if not __package__:
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "integration")]
    __package__ = "chaos"

from e2b import Sandbox
from sdk_support import convergence_s

from atoll.testing.footprint import Footprint
from chaos import plan
from chaos.actor import Actor, Unsettled
from chaos.killer import Killer, Points
from chaos.oracle import Oracle, There
from chaos.world import World, grown, small_disk
from support.tiers import TIERS

ACTORS = {"namespaces": 4, "gvisor": 3}
_BACK_WITHIN_S = 60.0
_LAST_STEP_S = 900.0
_RESTS_WITHIN_S = 30.0
"""In which what is made ahead of need is made again, in steps with pauses between them."""


@dataclass
class Report:
    """Of one run. It passed when `violations` is empty."""

    tier: str
    seed: int
    faults: dict[str, int] = field(default_factory=dict)
    at_points: dict[str, int] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)
    unanswered: dict[str, int] = field(default_factory=dict)
    verified: int = 0
    converged_s: float = 0.0
    took_s: float = 0.0
    load: float = 0.0
    errors: dict[str, str] = field(default_factory=dict)
    """The last one of each kind of call."""
    notes: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


def run(world: World, seed: int, count: int, *, can_fill: bool) -> Report:
    """`world` has just been started."""
    report = Report(world.tier, seed)
    began = time.monotonic()
    world.at_rest()
    before = world.at_rest()
    points = Points()
    actors = [
        Actor(world.options, plan.lives(seed, number), points.announce, f"a{number}")
        for number in range(ACTORS[world.tier])
    ]
    killer = Killer(world, plan.faults(seed, count, world.tier, small_disk=can_fill), points)
    threads = [threading.Thread(target=actor.run, name=f"actor {seed}") for actor in actors]
    for thread in threads:
        thread.start()
    killer.run()
    for actor in actors:
        actor.stop.set()
    for thread in threads:
        thread.join(_LAST_STEP_S)
        if thread.is_alive():
            report.violations.append("an actor's last step does not end")
    _examine(world, actors, report)
    _clear(world, actors, before, report)
    report.violations += [line for actor in actors for line in actor.oracle.violations] + killer.violations
    report.answered = dict(sorted(sum((actor.answered for actor in actors), Counter[str]()).items()))
    report.unanswered = dict(sorted(sum((actor.unanswered for actor in actors), Counter[str]()).items()))
    for actor in actors:
        report.errors |= actor.errors
    report.faults, report.at_points = dict(killer.done), dict(killer.at_points)
    report.notes = world.restarts_refused
    report.took_s, report.load = round(time.monotonic() - began, 1), os.getloadavg()[0]
    return report


def _examine(world: World, actors: list[Actor], report: Report) -> None:
    deadline = time.monotonic() + _BACK_WITHIN_S
    while world.listed() is None:
        if time.monotonic() > deadline:
            report.violations.append(f"the server does not answer {_BACK_WITHIN_S:g} s after the last fault")
            return
        time.sleep(0.05)
    began = time.monotonic()
    whole = Oracle.merged([actor.oracle for actor in actors])
    while wrong := whole.saw_listed(world.listed() or {}):
        if time.monotonic() > began + convergence_s():
            report.violations += wrong
            break
        time.sleep(0.05)
    report.converged_s = round(time.monotonic() - began, 2)
    report.violations += whole.saw_snapshots(world.snapshots())
    for actor in actors:
        try:
            actor.build_at_last()
        except Unsettled as error:
            report.violations.append(f"a template cannot be built any more: {error.__cause__}")
        for sandbox_id, life in list(actor.oracle.lives.items()):
            if life.there is There.YES:
                actor.verify(sandbox_id)
                report.verified += 1


def _clear(world: World, actors: list[Actor], before: tuple[Footprint, dict[str, int]], report: Report) -> None:
    for sandbox_id in world.listed() or {}:
        Sandbox.kill(sandbox_id, **world.options)
    for snapshot_id in world.snapshots():
        Sandbox.delete_snapshot(snapshot_id, **world.options)
    world.at_rest(10)
    deadline = time.monotonic() + max(_RESTS_WITHIN_S, convergence_s())
    while more := grown(before, world.footprint()):
        if time.monotonic() > deadline:
            report.violations.append(
                f"left behind: {more} {[path.name for path in world.directories()][:5]} {world.groups()[:5]}"
            )
            return
        time.sleep(0.5)


def main() -> int:
    """0: nothing was lost and nothing is left."""
    parser = argparse.ArgumentParser(
        description="Kills a server's processes while sandboxes live.", epilog="See docs/durability.md."
    )
    parser.add_argument("--tier", choices=TIERS, action="append")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--report", type=Path, help="append each run's report to this file, as JSON")
    given = parser.parse_args()
    from atoll.config import Settings
    from atoll.images.store import TemplateStore

    templates_dir = Settings.from_environ(os.environ).templates_dir
    TemplateStore(templates_dir).ensure_template("base")
    failed = False
    for tier in given.tier or TIERS:
        print(f"chaos: tier {tier}, seed {given.seed}, {given.faults} faults", flush=True)
        with tempfile.TemporaryDirectory(prefix="atoll-chaos-", ignore_cleanup_errors=True) as scratch:
            place = Path(scratch)
            with small_disk(place) as mounted, World(tier, mounted or place, templates_dir) as world:
                report = run(world, given.seed, given.faults, can_fill=mounted is not None)
                log = world.server.log
                if report.violations:
                    for one in (log, *world.data_dir.glob("run/*/*.log")):
                        kept = Path(tempfile.gettempdir()) / f"atoll-chaos-{tier}-{given.seed}-{one.name}"
                        kept.write_bytes(one.read_bytes())
                        print(f"a log of the server: {kept}")
        print(json.dumps(asdict(report), indent=1), flush=True)
        if given.report is not None:
            with given.report.open("a") as out:
                out.write(json.dumps(asdict(report)) + "\n")
        print("PASSED" if not report.violations else f"FAILED: {len(report.violations)} violations", flush=True)
        failed |= bool(report.violations)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
