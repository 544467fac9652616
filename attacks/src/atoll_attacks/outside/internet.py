"""A small internet in a network namespace of its own, run as a script; every contact is one JSON line on stdout.

Addresses, names, certificates are made for the tests and exist in that namespace only. What reached it is the canary
by which a test decides, from outside the sandbox, whether an attempt got through.

    python -m support.internet <directory with ca.pem and site.pem>
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import subprocess
import sys
import time
from pathlib import Path

GATEWAY = "198.51.100.1"
SERVER = "198.51.100.2"
SERVER_TOO = "198.51.100.77"
DNS = "203.0.113.53"
GOOD, EVIL, API = "203.0.113.10", "203.0.113.20", "203.0.113.66"
METADATA = "169.254.169.254"
PRIVATE = ("10.9.9.9", "172.20.0.9", "192.168.7.7", "100.64.0.9", "198.18.0.9")
ZONE = {
    "good.test": GOOD,
    "sub.good.test": GOOD,
    "shared.test": GOOD,
    "evil.test": EVIL,
    "api.test": API,
    "metadata.test": METADATA,
    "inward.test": PRIVATE[0],
    "host.test": SERVER,
    "untrusted.test": GOOD,
    "loop.test": "127.0.0.1",
}
NAMES = ["good.test", "sub.good.test", "shared.test", "evil.test", "api.test"]
TCP_PORTS = (80, 443, 853, 7000, 8080, 8443)
TLS_PORTS = (443, 8443)
UDP_PORTS = (53, 123, 443, 7000)


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def serve_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Requests until the client ends; the answer repeats what came, so that clients may compare."""
    address, port = writer.get_extra_info("sockname")[:2]
    secure = writer.get_extra_info("ssl_object") is not None
    say(kind="connect", address=address, port=port, tls=secure)
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            if not lines[0].endswith(("HTTP/1.1", "HTTP/1.0")):
                say(kind="bytes", address=address, port=port, tls=secure, data=head)
                continue
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            path = lines[0].split(" ")[1]
            say(kind="http", address=address, port=port, tls=secure, path=path, headers=headers, body=body.decode())
            if path.startswith("/big/"):
                size = int(path.split("/")[2])
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
                for _ in range(size // 65536):
                    writer.write(b"\0" * 65536)
                    await writer.drain()
                writer.write(b"\0" * (size % 65536))
            elif headers.get("upgrade") == "websocket":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
            else:
                text = json.dumps({"path": path, "host": headers.get("host"), "at": address}).encode()
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, ValueError, IndexError, ssl.SSLError) as error:
        rest = getattr(error, "partial", b"")
        if rest:
            say(kind="bytes", address=address, port=port, tls=secure, data=rest.decode("latin-1")[:2000])
    finally:
        writer.close()


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, port: int) -> None:
        self.port = port

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        say(kind="udp", port=self.port, data=data.decode("latin-1")[:2000])


class NameServer(asyncio.DatagramProtocol):
    """A for the zone, everything below evil.test, and names that change their minds."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(self.answer(data), addr)  # type: ignore[attr-defined]

    def answer(self, data: bytes) -> bytes:
        labels, offset = [], 12
        while data[offset]:
            labels.append(data[offset + 1 : offset + 1 + data[offset]].decode("latin-1"))
            offset += 1 + data[offset]
        name, kind = ".".join(labels).lower(), struct.unpack_from(">H", data, offset + 1)[0]
        say(kind="dns", name=name, type=kind, size=len(data), raw=data[offset + 5 :].decode("latin-1"))
        question = data[12 : offset + 5]
        address = self.address(name) if kind == 1 else None
        if address is None:
            return data[:2] + struct.pack(">5H", 0x8180 | (0 if name in ZONE else 3), 1, 0, 0, 0) + question
        record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(address)
        return data[:2] + struct.pack(">5H", 0x8180, 1, 1, 0, 0) + question + record

    def address(self, name: str) -> str | None:
        if name == "rebind.test":
            self.asked[name] = self.asked.get(name, 0) + 1
            return GOOD if self.asked[name] % 2 else PRIVATE[0]
        if name.endswith(".evil.test"):
            return EVIL
        return ZONE.get(name)

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                size = struct.unpack(">H", await reader.readexactly(2))[0]
                answer = self.answer(await reader.readexactly(size))
                writer.write(struct.pack(">H", len(answer)) + answer)
        except (asyncio.IncompleteReadError, IndexError, struct.error, ConnectionError):
            writer.close()


def watch_icmp(loop: asyncio.AbstractEventLoop) -> socket.socket:
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    raw.setblocking(False)
    loop.add_reader(raw, lambda: say(kind="icmp", data=raw.recv(2048)[28:].decode("latin-1")))
    return raw


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


async def main(directory: Path) -> None:
    for one in (DNS, GOOD, EVIL, API, METADATA, *PRIVATE):
        ip("addr", "add", f"{one}/32", "dev", "lo")
    loop = asyncio.get_running_loop()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(directory / "site.pem")
    tls.sni_callback = lambda _sock, name, _context: say(kind="sni", name=name)
    for port in TCP_PORTS:
        await asyncio.start_server(serve_http, "0.0.0.0", port, ssl=tls if port in TLS_PORTS else None)
    names = NameServer()
    await loop.create_datagram_endpoint(lambda: names, local_addr=(DNS, 53))
    await asyncio.start_server(names.stream, DNS, 53)
    for port in UDP_PORTS:
        for address in (EVIL, GOOD) if port == 53 else ("0.0.0.0",):
            await loop.create_datagram_endpoint(lambda port=port: Datagrams(port), local_addr=(address, port))  # type: ignore[misc]
    icmp = watch_icmp(loop)
    say(kind="ready", at=time.time())
    await loop.run_in_executor(None, sys.stdin.read)
    icmp.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
