"""A sandbox's rate of output: what is counted, for how long nothing is read, and when a sandbox is forgotten."""

from __future__ import annotations

import pytest

from atoll.edge.output_rate import OutputRates


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_at_once_and_what_is_beyond_it_is_waited_for() -> None:
    rates = OutputRates(1000, Clock())
    assert rates.spend("a", 500) == 0.0
    assert rates.spend("a", 250) == pytest.approx(0.25)
    assert rates.spend("a", 250) == pytest.approx(0.5)


def test_time_makes_up_for_what_was_sent() -> None:
    clock = Clock()
    rates = OutputRates(1000, clock)
    rates.spend("a", 1000)
    clock.now += 0.75
    assert rates.spend("a", 250) == 0.0
    clock.now += 1000
    assert rates.spend("a", 1500) == pytest.approx(1.0), "a long silence saves nothing up"


def test_connections_share_their_sandboxs_rate_and_sandboxes_share_nothing() -> None:
    rates = OutputRates(1000, Clock())
    assert rates.spend("a", 1500) == pytest.approx(1.0)
    assert rates.spend("b", 500) == 0.0
    assert rates.spend("a", 1) > 1.0


def test_a_sandbox_is_forgotten_only_when_it_has_made_up_for_everything() -> None:
    clock = Clock()
    rates = OutputRates(1000, clock)
    rates.spend("a", 1500)
    clock.now += 1.0
    rates.sweep()
    assert rates.spend("a", 500) == pytest.approx(0.5)
    clock.now += 2.0
    rates.sweep()
    assert rates._spent == {}


def test_without_a_limit_nothing_is_counted() -> None:
    rates = OutputRates(None, Clock())
    assert not rates.limited
    assert rates.spend("a", 10**12) == 0.0
