"""The gvisor tier: the same guest inside gVisor's application kernel, started by `runsc`.

    backend (in the server) ──► launcher (own process) ── cgroup, mounts ──► runsc run --detach
        │                                                                      │
        │                                     sentry + gofer (unprivileged ids) ▼ holds: pid 1 = boot, then the guest
        └───────────────── guest.sock (bound by the guest, moved out of its sight) ◄─┘

What a sandbox's program asks of "the kernel" is answered by the sentry, an ordinary process with a tight filter: a hole
in Linux is not a hole in this wall. The price is memory (about 50 MB), slower system calls, and a cold start of some
tenths of a second; a warm pool takes the start off the way of a create.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the launcher and the sandbox's first process import this package too and must stay small
    from atoll.isolation.base import BackendConfig, IsolationBackend


def backend(config: BackendConfig) -> IsolationBackend:
    """The entry point's factory."""
    from atoll.isolation.gvisor.tier import GvisorBackend

    return GvisorBackend(config)


__all__ = ["backend"]
