"""`atoll doctor --attack` finds the attack suite by entry point, or says what to install."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from atoll.cli import attack
from atoll.config import Settings
from atoll.model.errors import BackendUnavailable


def test_without_the_suite_it_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setattr(attack, "entry_points", lambda **_: EntryPoints())
    with pytest.raises(BackendUnavailable, match=r"atoll\[attacks\]"):
        attack.attack(Settings.from_environ({}), "", as_json=True)


def test_the_suite_is_found_by_its_entry_point(monkeypatch: Any) -> None:
    point = EntryPoint("suite", "atoll_attacks.doctor:run", attack.GROUP)
    monkeypatch.setattr(attack, "entry_points", lambda **_: EntryPoints([point]))
    from atoll_attacks import doctor

    assert attack.find() is doctor.run
