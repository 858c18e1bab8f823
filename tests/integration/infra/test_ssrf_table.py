"""No spelling, name, redirect or rebinding leads to a connection that isn't allowed: each connect is watched."""

import asyncio
import socket
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from urllib.parse import quote, unquote

import pytest

from infra.outbound.addresses import DEFAULT_PORTS, AllowList, is_public
from infra.outbound.budget import TimeBudget
from infra.outbound.client import OutboundClient
from infra.outbound.reasons import OutboundError
from tests.support.http_site import Heard, message, serving

PUBLIC = "93.184.216.34"

FORBIDDEN_V4 = [
    "127.0.0.1",
    "127.255.255.254",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "168.63.129.16",
    "100.64.0.1",
    "100.100.100.200",
    "0.0.0.0",
    "192.0.0.192",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "203.0.113.5",
]
FORBIDDEN_V6 = [
    "::1",
    "::",
    "fd00:ec2::254",
    "fe80::1",
    "fc00::1",
    "ff02::1",
    "2001:db8::1",
    "2001::1",
    "2002:7f00:1::",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1",
    "::ffff:127.0.0.1",
    "::ffff:a9fe:a9fe",
    "::127.0.0.1",
    "3fff::1",
    "fec0::1",
    "100::1",
]


def spellings(address: str) -> Iterator[str]:
    number, parts = int(ip_address(address)), [int(part) for part in address.split(".")]
    yield from (address, address + ".", str(number), hex(number), address.replace(".", "\u3002"))
    yield from (".".join(map(hex, parts)), ".".join(f"0{part:o}" for part in parts))
    yield from (f"{parts[0]}.{number & 0xFFFFFF}", f"[::ffff:{address}]")


def tricks(host: str) -> Iterator[str]:
    yield from (f"//{host}/", f"\\\\{host}\\", f"/\\{host}/", f"http:\\\\{host}\\a", f"HTTP://{host}:80/../")
    yield from (f"///{host}/", f"\\\\\\{host}\\", f"http:///{host}/")
    yield from (f"http://u:p@{host}/", f"http://good.test@{host}/", f"http://{host}%23@good.test/")
    yield from (f"http://{host}\\@good.test/", f"gopher://{host}/", f"http://{host}:22/", f"http://[{host}]/")


def urls() -> Iterator[str]:
    literals = [spelling for address in FORBIDDEN_V4 for spelling in spellings(address)]
    literals += [f"[{address}]" for address in FORBIDDEN_V6]
    yield from (f"http://{literal}/a.jpg" for literal in literals)
    yield from (f"http://redirector.test/http://{literal}/a.jpg" for literal in literals)
    for host in ("127.0.0.1", "169.254.169.254", "[::1]", "name-127.0.0.1.test"):
        for url in tricks(host):
            yield from (url, "http://redirector.test/" + quote(url, safe=""))
    for address in FORBIDDEN_V4 + FORBIDDEN_V6:
        for kind in ("name", "mixed", "rebinding"):
            host = f"{kind}-{address.replace(':', 'x')}.test"
            yield from (f"http://{host}/", f"https://{host}/", f"http://redirector.test/http://{host}/")


async def test_no_url_leads_to_a_forbidden_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    connect = loop.sock_connect
    connected: list[tuple[str, int]] = []
    looked_up: set[str] = set()

    async def watch(sock: socket.socket, address: tuple[str, int]) -> None:
        connected.append(address)
        if address == (PUBLIC, 80):
            await connect(sock, ("127.0.0.1", site.port))
        else:
            raise ConnectionRefusedError

    def look_up(host: str) -> Sequence[str]:
        kind, _, rest = host.partition("-")
        address = rest.removesuffix(".test").replace("x", ":")
        first = host not in looked_up
        looked_up.add(host)
        answers = {"name": [address], "mixed": [address, PUBLIC], "rebinding": [PUBLIC if first else address]}
        return answers.get(kind, [PUBLIC])

    async def redirect(heard: Heard, writer: asyncio.StreamWriter) -> None:
        is_redirector = heard.headers["host"] == "redirector.test"
        location = {"Location": unquote(heard.target[1:])} if is_redirector else {}
        writer.write(message(302 if is_redirector else 200, b"x", location))

    count = 0
    async with serving(redirect) as site, OutboundClient(AllowList(), look_up=look_up, dns_cache_seconds=0) as client:
        monkeypatch.setattr(loop, "sock_connect", watch)
        for url in urls():
            for _ in range(2 if "rebinding" in url else 1):
                connected.clear()
                try:
                    await client.get(url, max_bytes=10, budget=TimeBudget(30))
                except OutboundError:
                    pass
                else:
                    assert {host for host, _ in connected} == {PUBLIC}, url
                assert all(is_public(ip_address(host)) and port in DEFAULT_PORTS for host, port in connected), url
                count += 1
    assert count > 500
    assert len(site.heard) > 200  # the redirector and the public answers of names were reached
