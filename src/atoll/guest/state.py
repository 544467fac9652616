"""What the guest knows at run time: its configuration as the host gave it and as `/init` may change it. No I/O."""

from __future__ import annotations

import time
from collections.abc import Mapping

from atoll.guest.log import GuestLog
from atoll.guest.process.users import User, Users, expand_path, user_in_header
from atoll.guest.tier_parts import TierParts
from atoll.http1.server import Headers
from atoll.model.sandbox import SandboxSpec


class GuestState:
    """One per guest, shared by all services in its single thread; each attribute has one meaning and few writers.

    Writers: `/init` (`guest/pid1/init.py`) alone changes `env_vars`, `access_token`, `default_user`, `default_workdir`;
    `/limits` (`guest/machine/shown.py`) changes `limits`; `/identity` (`guest/pid1/checkpoint.py`) all of them.
    """

    def __init__(self, spec: SandboxSpec, users: Users, tier: TierParts | None = None) -> None:
        self.spec = spec
        self.tier = tier or TierParts()
        self.users = users
        self.env_vars: dict[str, str] = {**_identity(spec), **spec.env_vars}
        self.access_token = spec.access_token
        self.default_user = spec.default_user
        self.default_workdir = spec.default_workdir
        self.limits = spec.limits
        self.started_at = time.monotonic()
        self.log = GuestLog()

    def become(self, spec: SandboxSpec) -> None:
        """Another sandbox's state from now on: names, environment, token, defaults, limits (`/identity`)."""
        self.spec = spec
        self.env_vars = {**_identity(spec), **spec.env_vars}
        self.access_token = spec.access_token
        self.default_user = spec.default_user
        self.default_workdir = spec.default_workdir
        self.limits = spec.limits

    def user_of(self, headers: Headers) -> User:
        """The user a call is for: the Basic header's, else the default. Raises ConnectError unauthenticated."""
        return self.users.find(user_in_header(headers) or self.default_user)

    def user_named(self, name: str | None) -> User:
        """By name, None or "" for the default user. Raises ConnectError unauthenticated."""
        return self.users.find(name or self.default_user)

    def resolve(self, path: str, user: User) -> str:
        """Absolute path as the protocol defines it (`~`, relative, empty). Raises ConnectError invalid_argument."""
        return expand_path(path, user, self.default_workdir)

    def environment_of(self, user: User, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a new process: PATH, the user's own, the sandbox's, the call's; later ones win."""
        return {
            "PATH": DEFAULT_PATH,
            "HOME": user.home,
            "USER": user.name,
            "LOGNAME": user.name,
            **self.env_vars,
            **(extra or {}),
        }


DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _identity(spec: SandboxSpec) -> dict[str, str]:
    """By which programs know where they are, as in E2B (whose E2B_EVENTS_ADDRESS would lead nowhere here)."""
    return {"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": spec.sandbox_id, "E2B_TEMPLATE_ID": spec.template_id}
