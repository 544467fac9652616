"""What the REST handlers call: typed in the model's words, knowing neither HTTP nor how a sandbox runs.

Every transition of a sandbox is in the store before it is begun and again when it is done. In memory are only the
counts of `SandboxQuota` and the deadlines of `Expiry`, which `Reconciliation` rebuilds at start.
`plane` builds all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.control.access.keys import KeyService
from atoll.control.access.teams import TeamService
from atoll.control.events.webhooks import EventService
from atoll.control.nodes.service import NodeService
from atoll.control.sandboxes.creation import SandboxCreation
from atoll.control.sandboxes.ending import SandboxEnding
from atoll.control.sandboxes.lookup import SandboxLookup
from atoll.control.sandboxes.network import SandboxNetwork
from atoll.control.sandboxes.orders import Policy
from atoll.control.sandboxes.pausing import SandboxPausing
from atoll.control.sandboxes.snapshots import SandboxSnapshots
from atoll.control.sandboxes.telemetry import SandboxTelemetry
from atoll.control.sandboxes.timeouts import SandboxTimeouts
from atoll.control.secrets.service import SecretService
from atoll.control.telemetry.figures import Figures
from atoll.control.templates.build_log import BuildLogs
from atoll.control.templates.builds import TemplateBuildService
from atoll.control.templates.catalog import TemplateService
from atoll.control.templates.uploads import Uploads
from atoll.control.volumes.service import VolumeService


@dataclass(frozen=True, slots=True)
class Services:
    """One field for each thing that a handler can ask for."""

    policy: Policy
    figures: Figures
    sandboxes: SandboxLookup
    creation: SandboxCreation
    ending: SandboxEnding
    pausing: SandboxPausing
    timeouts: SandboxTimeouts
    network: SandboxNetwork
    telemetry: SandboxTelemetry
    templates: TemplateService
    snapshots: SandboxSnapshots
    builds: TemplateBuildService
    build_logs: BuildLogs
    uploads: Uploads
    teams: TeamService
    keys: KeyService
    secrets: SecretService
    volumes: VolumeService
    events: EventService
    nodes: NodeService
