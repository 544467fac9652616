"""Headers that the platform adds to what leaves the sandbox, besides the network policy that it was made with."""

from __future__ import annotations

from typing import Any

from e2b import Sandbox, SandboxException

from atoll.runtime.errors import AgentRuntimeError
from atoll.runtime.repository.credentials import Authorization

_KEPT = ("allow_out", "deny_out", "dns_servers", "egress_proxy")


class EgressRules:
    """Of one sandbox. The same on Atoll and on E2B's cloud: the SDK's network rules."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._ours: dict[str, Authorization] = {}

    def authorize(self, added: Authorization) -> None:
        """From now on requests of the sandbox to that origin carry the header; nobody inside can read it.

        Raises AgentRuntimeError: the platform cannot, or the sandbox has rules that this would replace.
        """
        if self._ours.get(added.origin) == added:
            return
        try:
            network: dict[str, Any] = dict(self._sandbox.get_info().network or {})
            known = {_plain(origin) for origin in self._ours}
            if foreign := sorted(origin for origin in network.get("rules") or {} if _plain(origin) not in known):
                raise AgentRuntimeError(
                    f"the sandbox has network rules of its own ({foreign[0]}), which answers do not show in full",
                    hint="add the git host's Authorization to them, and clone without a token",
                )
            ours = {**self._ours, added.origin: added}
            rules = {
                origin: [{"transform": {"headers": {"Authorization": one.header}}}] for origin, one in ours.items()
            }
            kept = {name: network[name] for name in _KEPT if network.get(name)}
            self._sandbox.update_network({**kept, "rules": rules})  # type: ignore[typeddict-item]
        except SandboxException as error:
            raise AgentRuntimeError(
                f"the git token was not given to the sandbox, and cannot be added outside of it: {error}",
                hint="the platform must offer network rules; without them only what needs no token can be cloned",
            ) from error
        self._ours = ours


def _plain(origin: str) -> str:
    """The same for every way in which a platform may write an origin: without the port that its scheme has anyway."""
    scheme, _, host = origin.rpartition("://")
    return f"http://{host.removesuffix(':80')}" if scheme == "http" else host.removesuffix(":443")
