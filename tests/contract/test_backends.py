"""Every tier that this machine can run, before the same court."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType

import pytest

from atoll.isolation.base import BackendConfig, IsolationBackend
from atoll.isolation.registry import load
from atoll.testing.backend_contract import BackendContract
from support.host import TOOLS, skip_without


class TestNamespaces(BackendContract):
    walled = True
    _layers: tuple[Path, ...] = ()

    @pytest.fixture(autouse=True)
    def template(self, request: pytest.FixtureRequest) -> None:
        skip_without("namespaces")
        from atoll.images.store import TemplateStore

        directory: Path = request.getfixturevalue("templates_dir")
        type(self)._layers = TemplateStore(directory).find_template("base").layers

    def make_backend(self, run_dir: Path) -> IsolationBackend:
        return load("namespaces")(BackendConfig(run_dir))

    def layers(self) -> tuple[Path, ...]:
        return self._layers


class TestGvisor(BackendContract):
    walled = True
    _layers: tuple[Path, ...] = ()

    @pytest.fixture(autouse=True)
    def template(self, request: pytest.FixtureRequest) -> None:
        skip_without("gvisor")
        from atoll.images.store import TemplateStore

        directory: Path = request.getfixturevalue("templates_dir")
        type(self)._layers = TemplateStore(directory).find_template("base").layers

    def make_backend(self, run_dir: Path) -> IsolationBackend:
        return load("gvisor")(
            BackendConfig(run_dir, tools_dir=TOOLS, environ={**os.environ, "ATOLL_GVISOR_READY": "0"})
        )

    def layers(self) -> tuple[Path, ...]:
        return self._layers


class TestFake(BackendContract):
    gaps = MappingProxyType(
        dict.fromkeys(
            ["test_a_create_that_fails_leaves_nothing_and_harms_nobody", "test_a_resume_that_fails_leaves_it_paused"],
            "the fake tier has no root and looks at no layer",
        )
    )

    def make_backend(self, run_dir: Path) -> IsolationBackend:
        from atoll.testing.fake import backend

        return backend(BackendConfig(run_dir))

    def layers(self) -> tuple[Path, ...]:
        return (Path("/"),)
