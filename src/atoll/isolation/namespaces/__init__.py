"""The namespaces tier: a warm zygote forks, the child enters its own namespaces and is the guest.

    backend (in the server) ──seqpacket──► zygote (own process, host root, one thread, guest already imported)
        │                                     │ clone3 into new namespaces
        │                                     ▼
        └──────guest.sock, pidfd──────► sandbox: pid 1 = guest

Server, zygote and sandboxes end independently: a sandbox survives the death of both, the next server adopts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the zygote imports this package too and must stay small
    from atoll.isolation.base import BackendConfig, IsolationBackend


def backend(config: BackendConfig) -> IsolationBackend:
    """The entry point's factory."""
    from atoll.isolation.namespaces.tier import NamespacesBackend

    return NamespacesBackend(config)


__all__ = ["backend"]
