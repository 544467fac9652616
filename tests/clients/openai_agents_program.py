# type: ignore
"""openai-agents: its E2B sandbox extension, from the client to the end of a session that was resumed."""

import asyncio
import io
import json
from pathlib import Path

from agents.extensions.sandbox.e2b import E2BSandboxClient, E2BSandboxClientOptions
from agents.sandbox import Manifest

OPTIONS = E2BSandboxClientOptions(
    sandbox_type="e2b",
    template="base",
    timeout=120,
    envs={"GREETING": "hello"},
    exposed_ports=(8000,),
    on_timeout="kill",
)


async def main() -> dict:
    client = E2BSandboxClient()
    session = await client.create(manifest=Manifest(), options=OPTIONS)
    found = {"sandbox": session.state.sandbox_id}
    async with session:
        done = await session.exec("echo $GREETING; echo err >&2; pwd; exit 3")
        found["exec"] = [done.stdout.decode(), done.stderr.decode(), done.exit_code]
        await session.mkdir(Path("sub"), parents=True)
        await session.write(Path("sub/note.txt"), io.BytesIO("größe".encode()))
        found["read"] = (await session.read(Path("sub/note.txt"))).read().decode()
        found["ls"] = [Path(entry.path).name for entry in await session.ls(Path("sub"))]
        await session.mv(Path("sub/note.txt"), Path("moved.txt"))
        found["moved"] = (await session.exec("cat", "moved.txt", shell=False)).stdout.decode()
        started = await session.pty_exec_start("read line; echo got $line; exit 5", tty=True, yield_time_s=1.0)
        answered = await session.pty_write_stdin(session_id=started.process_id, chars="word\n", yield_time_s=2.0)
        found["pty"] = answered.output.decode()
        endpoint = await session.resolve_exposed_port(8000)
        found["port"] = endpoint.host
        found["running"] = await session.running()
        resumed = await client.resume(session.state)
        found["same"] = (await resumed.exec("cat moved.txt")).stdout.decode()
    await client.delete(session)
    return found


print("\n" + json.dumps(asyncio.run(main())))
