"""Whether traces are wanted, by the settings; what they are is in tests/integration/test_traces.py."""

from __future__ import annotations

import pytest

from atoll.control.telemetry import tracing
from atoll.control.telemetry.tracing import ENDPOINTS, NoTracing, is_asked_for, tracing_of
from atoll.model.errors import InvalidRequest


def test_nothing_is_traced_unless_a_collector_is_set() -> None:
    assert not is_asked_for({"OTEL_SERVICE_NAME": "x", ENDPOINTS[0]: ""})
    assert isinstance(tracing_of({}), NoTracing)


@pytest.mark.parametrize("name", ENDPOINTS)
def test_without_the_library_the_server_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_NEEDED", ("atoll.no_such_module.at_all",))
    with pytest.raises(InvalidRequest, match=r"pip install 'atoll\[otel\]'"):
        is_asked_for({name: "http://127.0.0.1:4318"})
