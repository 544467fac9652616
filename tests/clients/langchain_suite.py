# type: ignore
"""LangChain's standard suite for sandboxes (langchain-tests), for both classes of langchain-e2b."""

import asyncio

import pytest
from e2b import AsyncSandbox, Sandbox
from langchain_e2b import AsyncE2BSandbox, E2BSandbox
from langchain_tests.integration_tests import SandboxIntegrationTests


class TestE2BSandbox(SandboxIntegrationTests):
    @pytest.fixture(scope="class")
    def sandbox(self):
        sandbox = Sandbox.create(timeout=600)
        yield E2BSandbox(sandbox=sandbox)
        sandbox.kill()


class TestAsyncE2BSandbox(SandboxIntegrationTests):
    @pytest.fixture(scope="class")
    def sandbox(self):
        sandbox = asyncio.run(AsyncSandbox.create(timeout=600))
        yield AsyncE2BSandbox(sandbox=sandbox)
        Sandbox.kill(sandbox.sandbox_id)
