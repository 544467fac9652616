"""How the OpenHands agent server is started: by the workspace, or by a template that is kept warm.

Template().from_template(…).set_start_cmd(dormant(), "curl -sf localhost:8000/health")
"""

from __future__ import annotations

import shlex

AGENT_SERVER = "python3 -m openhands.agent_server --host 0.0.0.0 --port 8000"
INIT_KEY = "/tmp/.openhands-init-key"
"""In the sandbox: what the server's `/api/init` asks for. Made when the server starts; its owner alone may read it."""


WORKING_DIR = "/workspace"


def dormant(command: str = AGENT_SERVER, working_dir: str = WORKING_DIR) -> str:
    """A start command: the server answers, and does nothing until a workspace has given it its keys.

    `working_dir`: where its commands begin, as the workspaces' own `working_dir`.
    """
    where = shlex.quote(working_dir)
    return (
        f'{{ mkdir -p -- {where} || sudo install -d -o "$(id -un)" -- {where}; }} 2>/dev/null; cd -- {where} || exit; '
        f"umask 077; head -c 24 /dev/urandom | base64 -w0 >{INIT_KEY}; "
        f"export OH_DEFERRED_INIT=true OH_SECRET_KEY=$(cat {INIT_KEY}); umask 022; exec {command}"
    )
