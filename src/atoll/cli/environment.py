"""The environment that points E2B's SDKs and CLI at a server. What `atoll env` prints and `atoll run` uses."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from atoll.cli import running
from atoll.cli.domain import domain_environ
from atoll.config import Settings
from atoll.control.access.auth import configured_keys
from atoll.model.errors import Conflict


def environ_for(url: str, api_key: str) -> dict[str, str]:
    """The variables for a server at `url`."""
    return {"E2B_API_KEY": api_key, "E2B_API_URL": url, "E2B_SANDBOX_URL": url, "E2B_VOLUME_API_URL": url}


def client_environ(settings: Settings, *, by_domain: bool = False) -> dict[str, str]:
    """The variables for the server that runs on `settings.data_dir`, or for its domain over TLS.

    Raises Conflict when no server runs there, or one without TLS.
    """
    server = running.find(settings.data_dir)
    if server is None:
        raise Conflict(
            f"no server runs on {settings.data_dir}",
            hint="start one with `atoll serve`, or name its directory with --data-dir",
        )
    if server.keys == "configured" and not settings.api_keys:
        raise Conflict(
            f"the server at {server.url} was started with ATOLL_API_KEYS, which is not set here",
            hint="set it to the same keys",
        )
    keys = settings.api_keys if server.keys == "configured" else ()
    key = configured_keys(keys, settings.data_dir)[0]
    if not by_domain:
        return environ_for(server.url, key)
    if server.domain is None:
        raise Conflict(
            f"the server at {server.url} serves no domain over TLS",
            hint="start it with --domain and --tls or --tls-cert",
        )
    return domain_environ(server.domain, key, server.ca_bundle)


def export_lines(environ: Mapping[str, str]) -> str:
    """As lines for `eval`."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in environ.items())
