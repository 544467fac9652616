"""Egress through the gateway beside direct: latency of a connection with one request, a look-up, and throughput.

    python benchmarks/egress.py [--rounds 200] [--megabytes 256]

Both sides run the same client program against the same servers over the same veth pair, in turns: "direct" in the
server's own network namespace, "gateway" in a sandbox with the default policy, "by name" under a policy that allows one
name only (the first bytes are read before the verdict), "rule" over HTTPS with a header added (TLS ended and begun
anew). Raw rows go to `results/egress.csv`, a table to standard output.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from e2b import Sandbox

from atoll.config import Settings
from atoll_attacks.outside import internet
from support.egress_world import World, no_world, world

# Run on either side by the same interpreter version; prints one JSON list of seconds (or bytes per second).
CLIENT = """
import json, os, socket, ssl, struct, sys, time
kind, rounds, address, name, dns = sys.argv[1], int(sys.argv[2]), *sys.argv[3:6]
def read(s):
    data = b""
    while b"\\r\\n\\r\\n" not in data:
        data += s.recv(65536)
def fetch(tls):
    began = time.perf_counter()
    s = socket.create_connection((address, 443 if tls else 80))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls:
        context = ssl._create_unverified_context()
        s = context.wrap_socket(s, server_hostname=name)
    s.sendall(f"GET /b HTTP/1.1\\r\\nHost: {name}\\r\\n\\r\\n".encode())
    read(s)
    s.close()
    return time.perf_counter() - began
def ask():
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + b"\\0"
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
    began = time.perf_counter()
    s.sendto(os.urandom(2) + struct.pack(">5H", 0x0100, 1, 0, 0, 0) + labels + struct.pack(">2H", 1, 1), (dns, 53))
    s.recv(4096)
    s.close()
    return time.perf_counter() - began
def bulk():
    size = rounds << 20
    s = socket.create_connection((address, 7001))
    s.sendall(str(size).encode() + b"\\n")
    began, got = time.perf_counter(), 0
    while got < size:
        piece = s.recv(1 << 18)
        if not piece:
            break
        got += len(piece)
    return got / (time.perf_counter() - began)
ask()
if kind == "bulk":
    print(json.dumps([bulk() for _ in range(3)]))
else:
    act = {"http": lambda: fetch(False), "https": lambda: fetch(True), "dns": ask}[kind]
    act()
    print(json.dumps([act() for _ in range(rounds)]))
"""
# Sends as many bytes as it is asked for: one thread per connection, large writes.
SOURCE = """
import socket, threading
block = bytes(1 << 20)
def serve(s):
    size = int(s.makefile("rb").readline())
    for _ in range(size >> 20):
        s.sendall(block)
    s.close()
listener = socket.create_server(("0.0.0.0", 7001))
print('{"kind": "ready"}', flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def in_sandbox(sandbox: Sandbox, arguments: list[str]) -> list[float]:
    """The client's figures from inside."""
    sandbox.files.write("/tmp/client.py", CLIENT)
    told = sandbox.commands.run(f"python3 /tmp/client.py {' '.join(arguments)}", timeout=300).stdout
    return [float(one) for one in json.loads(told)]


def directly(made: World, arguments: list[str]) -> list[float]:
    """The client's figures without a wall."""
    told = made.run("import sys; sys.argv = " + repr(["-", *arguments]) + "\n" + CLIENT, 300)
    return [float(one) for one in json.loads(told)]


def measure(made: World, rounds: int, megabytes: int) -> list[tuple[str, str, float]]:
    """(what, side, figure) rows."""
    rule = {"good.test": [{"transform": {"headers": {"X-Key": "k"}}}]}
    sides = {
        "gateway": Sandbox.create(timeout=900),
        "by name": Sandbox.create(timeout=900, network={"allow_out": ["good.test"], "deny_out": ["0.0.0.0/0"]}),
        "rule": Sandbox.create(timeout=900, network={"rules": rule}),
    }
    plan = {
        "http": ("direct", "gateway", "by name", "rule"),
        "https": ("direct", "gateway", "by name", "rule"),
        "dns": ("direct", "gateway"),
        "bulk": ("direct", "gateway"),
    }
    rows: list[tuple[str, str, float]] = []
    for what, which in plan.items():
        for _turn in range(3):
            for side in which:
                count = megabytes if what == "bulk" else max(1, rounds // 3)
                arguments = [what, str(count), internet.GOOD, "good.test", internet.DNS]
                figures = directly(made, arguments) if side == "direct" else in_sandbox(sides[side], arguments)
                rows += [(what, side, figure) for figure in figures]
    for sandbox in sides.values():
        sandbox.kill()
    return rows


def table(rows: list[tuple[str, str, float]]) -> str:
    """For people."""
    lines = ["| | side | p50 | p95 | n |", "|---|---|---|---|---|"]
    for what, side in dict.fromkeys((what, side) for what, side, _ in rows):
        figures = sorted(figure for w, s, figure in rows if (w, s) == (what, side))
        p50, p95 = statistics.median(figures), figures[min(len(figures) - 1, int(len(figures) * 0.95))]
        if what == "bulk":
            lines.append(f"| throughput | {side} | {p50 / 1e6:.0f} MB/s | | {len(figures)} |")
        else:
            name = {"http": "connect + request", "https": "connect + TLS + request", "dns": "look-up"}[what]
            lines.append(f"| {name} | {side} | {p50 * 1000:.2f} ms | {p95 * 1000:.2f} ms | {len(figures)} |")
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--megabytes", type=int, default=256)
    options = parser.parse_args()
    if (fault := no_world()) is not None:
        sys.exit(f"cannot be measured here: {fault}")
    templates = Settings.from_environ(os.environ).templates_dir
    with tempfile.TemporaryDirectory() as scratch, world(Path(scratch), templates, source=SOURCE) as made:
        os.environ.update(made.environ)
        rows = measure(made, options.rounds, options.megabytes)
    results = Path(__file__).parent / "results" / "egress.csv"
    with results.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("what", "side", "seconds, or bytes per second for bulk"))
        writer.writerows(rows)
    print(f"load {os.getloadavg()[0]:.1f}; raw rows in {results}\n{table(rows)}")


if __name__ == "__main__":
    main()
