"""What happens in a run: a pure function of the seed. Lives of sandboxes, step by step, and faults, one after another.

Steps do not depend on what came of those before them: an actor first makes what a step needs (a running sandbox).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

ROLES = ("front", "node", "egress", "zygote", "launcher")
POINTS = ("create", "write", "pause", "resume", "auto_pause", "snapshot", "from_snapshot", "fork", "kill", "build")
"""Moments: just after an actor has asked for this."""

JUMPING, JUMPS_S = 0.06, (-20.0, -5.0, 5.0, 60.0)
"""How many of the faults are jumps of the server's clock, and how far. Back less than a pause at a timeout is waited
for: timeouts are of that clock."""

_STEPS = {
    "write": 6,
    "overwrite": 3,
    "command": 4,
    "background": 2,
    "log": 2,
    "read": 4,
    "look": 2,
    "set_timeout": 2,
    "pause": 4,
    "pause_disk": 3,
    "resume": 3,
    "reboot": 1,
    "auto_pause": 2,
    "wake": 1,
    "snapshot": 2,
    "from_snapshot": 2,
    "fork": 2,
    "delete_snapshot": 1,
    "build": 0.15,
}


@dataclass(frozen=True, slots=True)
class Step:
    """`number` is unlike that of any other step of the run: contents of files are made of it."""

    kind: str
    number: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One sandbox from its create to its end. `ends`: killed by a call, at its timeout, or left to the last."""

    auto_resume: bool
    steps: tuple[Step, ...]
    ends: str


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind`: kill, freeze, fill, jump. `victim`: a role; "" for the disk and for the clock, which jumps by `for_s`.
    `point`: "" for any moment. Times in seconds."""

    kind: str
    victim: str
    point: str
    delay_s: float
    for_s: float = 0.0


def lives(seed: int, actor: int) -> Iterator[Plan]:
    """Without end."""
    rng = random.Random(f"{seed}/actor/{actor}")
    number = actor * 1_000_000
    while True:
        steps = []
        for kind in rng.choices(list(_STEPS), list(_STEPS.values()), k=rng.randint(4, 14)):
            number += 1
            steps.append(Step(kind, number))
        yield Plan(rng.random() < 0.5, tuple(steps), rng.choice(("kill", "kill", "kill", "timeout", "left")))


def faults(seed: int, count: int, tier: str, *, small_disk: bool) -> list[Fault]:
    """`count` of them."""
    rng = random.Random(f"{seed}/faults")
    roles = [role for role in ROLES if role != "zygote" or tier == "namespaces"]
    weights = [{"launcher": 1, "egress": 2}.get(role, 4) for role in roles]
    longest = 0.06 if tier == "namespaces" else 0.6
    made = []
    for _ in range(count):
        kind = rng.choices(("kill", "freeze", "fill"), (10, 2, 0.4 if small_disk else 0))[0]
        (victim,) = rng.choices(roles, weights) if kind != "fill" else ("",)
        point = rng.choice(POINTS) if rng.random() < 0.6 else ""
        if kind == "freeze":
            victim = victim if victim in ("front", "node", "egress") else "node"
        delay = rng.random() * longest if point else rng.random() * (0.8 if tier == "namespaces" else 4.0)
        held = {"kill": 0.0, "freeze": rng.choice((0.1, 0.5, 2.0, 6.5)), "fill": rng.uniform(0.5, 2.0)}[kind]
        made.append(Fault(kind, victim, point, round(delay, 4), held))
    jumps = random.Random(f"{seed}/jumps")
    return [
        replace(one, kind="jump", victim="", for_s=jumps.choice(JUMPS_S)) if jumps.random() < JUMPING else one
        for one in made
    ]
