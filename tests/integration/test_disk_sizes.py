"""Disks of many sizes on a real server: each call is told the size that it got, and none keeps a neighbour waiting."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from e2b import Sandbox

from support.tiers import SERVER_ENVIRON, one_tier

ODD = [12289 + 4096 * number for number in range(4)]


@one_tier("the other makes its empty file systems in the same threads, and takes seconds for each start")
def test_while_many_odd_sizes_are_made_a_neighbours_create_proceeds(
    start_server: Callable[..., Any], tier: str, tmp_path: Path
) -> None:
    mkfs = shutil.which("mkfs.ext4")
    assert mkfs is not None, "every machine that has the tiers has it"
    slow = tmp_path / "slow" / "mkfs.ext4"
    slow.parent.mkdir()
    # The size is not among its arguments: it is the image's.
    large, go_on = f'[ "$(stat -L -c %s "$image")" -gt {10240 << 20} ]', tmp_path / "go-on"
    wait = f"while {large} && [ ! -e {go_on} ]; do sleep 0.1; done"
    slow.write_text(f'#!/bin/sh\nfor image; do :; done\n{wait}\nexec {mkfs} "$@"\n')
    slow.chmod(0o755)
    server = start_server(
        environ={**SERVER_ENVIRON[tier], "PATH": f"{slow.parent}:{os.environ['PATH']}"},
        options=["--isolation", tier, "--end-sandboxes"],
    )
    options = {"api_key": server.api_key, "api_url": server.url, "sandbox_url": server.url, "timeout": 60}

    def create(metadata: dict[str, str]) -> Sandbox:
        return Sandbox.create(metadata=metadata, **options)

    with ThreadPoolExecutor(len(ODD)) as pool:
        odd = [pool.submit(create, {"atoll.disk": str(size)}) for size in ODD]
        time.sleep(0.3)
        for metadata in ({}, {"atoll.disk": "33"}):
            neighbour = create(metadata)
            assert neighbour.commands.run("echo here").stdout == "here\n"
            neighbour.kill()
        assert not any(one.done() for one in odd), "the control: those are still being made"
        go_on.touch()
        first = odd[0].result(60)
    size = int(first.commands.run("df --output=size -BM / | tail -1 | tr -dc 0-9").stdout)
    assert 16384 * 0.95 < size <= 16384, "what was asked for is rounded up"
    for one in odd:
        one.result().kill()
