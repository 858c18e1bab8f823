"""Which addresses may be connected to: public ones, and those that `FETCH_ALLOW` names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Self

from yarl import URL

DEFAULT_PORTS = frozenset({80, 443})

Address = IPv4Address | IPv6Address

Network = IPv4Network | IPv6Network

# IANA IPv4 Special-Purpose Address Registry (RFC 6890 and its updates), multicast, and cloud metadata services.
FORBIDDEN_IPV4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network; 0.0.0.0 connects to loopback
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared (carrier-grade NAT); 100.100.100.200 is a cloud's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a cloud's metadata service in a public range
        "169.254.0.0/16",  # link-local; 169.254.169.254 is most clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)

# Only global unicast (RFC 4291 §2.4) is public. That leaves out ::, ::1, IPv4-compatible, IPv4-mapped,
# NAT64 (64:ff9b::/96, 64:ff9b:1::/48), unique-local (fd00:ec2::254 is a cloud's metadata), link-local.
GLOBAL_IPV6 = IPv6Network("2000::/3")

# IANA IPv6 Special-Purpose Address Registry, the part inside global unicast.
FORBIDDEN_IPV6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo (holds an IPv4 address), benchmarking, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4 (holds an IPv4 address)
        "3fff::/20",  # documentation
    )
)


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet.

    Addresses that embed an IPv4 address (mapped, compatible, 6to4, NAT64, Teredo) are never public:
    the embedded address decides where the packet goes. A site's own NAT64 prefix can't be known here.
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in FORBIDDEN_IPV4)
    return address in GLOBAL_IPV6 and not any(address in network for network in FORBIDDEN_IPV6)


DECIMAL = re.compile(r"[0-9]+")

_OCTAL = re.compile(r"0[0-7]+")

_HEX = re.compile(r"0x[0-9a-f]*")

_LABEL = re.compile(r"[a-z0-9_-]{1,63}")


def _ipv4_number(text: str) -> int:
    if _HEX.fullmatch(text):
        return int(text[2:] or "0", 16)
    if _OCTAL.fullmatch(text):
        return int(text, 8)
    if DECIMAL.fullmatch(text) and (text == "0" or text[0] != "0"):
        return int(text)
    raise ValueError(text)


def _parse_ipv4(labels: Sequence[str]) -> IPv4Address:
    """The address behind ``127.0.0.1``, ``127.1``, ``0x7f.1``, ``0177.0.0.1`` or ``2130706433``.

    The rules are those of the URL Standard (url.spec.whatwg.org, "IPv4 parser"), which also are inet_aton's.
    """
    if len(labels) > 4:
        raise ValueError("more than four parts")
    *leading, last = map(_ipv4_number, labels)
    if any(number > 255 for number in leading) or last >= 256 ** (4 - len(leading)):
        raise ValueError("a part is out of range")
    return IPv4Address(last + sum(number << 8 * (3 - index) for index, number in enumerate(leading)))


def _parse_host(text: str) -> str | Address:
    """The host of a URL: an address, or a name in lower case and IDNA form. Raises ValueError."""
    if text.startswith("["):
        if "%" in text:
            raise ValueError("a zone in an address")  # RFC 6874 zones are local to a machine
        return IPv6Address(text[1:-1])
    name = text.lower() if text.isascii() else URL.build(scheme="http", host=text).raw_host or ""
    if len(name) > 254:
        raise ValueError("longer than a DNS name")
    labels = name.removesuffix(".").split(".")
    if DECIMAL.fullmatch(labels[-1]) or _HEX.fullmatch(labels[-1]):
        return _parse_ipv4(labels)
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("not a host name")
    return name


@dataclass(frozen=True)
class _Allowed:
    """One entry of FETCH_ALLOW: a network or a host name, on one port or (None) on all."""

    what: Network | str
    port: int | None

    def has_port(self, port: int) -> bool:
        return self.port is None or self.port == port


@dataclass(frozen=True)
class AllowList:
    """Allow list of private addresses and of ports other than 80 and 443 (the setting FETCH_ALLOW).

    A network entry (IP or CIDR) allows its addresses for every URL. A name entry allows exactly that
    name, whatever it resolves to: its owner is trusted. Neither allows any other name or address.
    """

    entries: tuple[_Allowed, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read comma-separated ``host``, IP or CIDR, each with an optional ``:port``.

        IPv6 with a port is in brackets: ``[::1]:8080``, ``[fd00::/8]:8080``. Raises ValueError,
        whose message names the malformed entry.
        """
        entries = []
        for entry in filter(None, map(str.strip, text.split(","))):
            try:
                entries.append(_parse_allowed(entry))
            except ValueError as error:
                raise ValueError(f"FETCH_ALLOW entry {entry!r}: {error}") from None
        return cls(tuple(entries))

    def has_name(self, name: str, port: int) -> bool:
        """Whether this host name is trusted on this port, whatever it resolves to."""
        name = name.removesuffix(".")
        return any(entry.what == name and entry.has_port(port) for entry in self.entries)

    def permits(self, address: Address, port: int) -> bool:
        """Whether a connection to this address may be made for any URL."""
        if port in DEFAULT_PORTS and is_public(address):
            return True
        return any(
            not isinstance(entry.what, str) and address in entry.what and entry.has_port(port) for entry in self.entries
        )

    def may_permit_port(self, port: int) -> bool:
        """Whether any address is permitted on this port: all that can be checked of a name before DNS."""
        return port in DEFAULT_PORTS or any(
            not isinstance(entry.what, str) and entry.has_port(port) for entry in self.entries
        )


_ALLOWED = re.compile(r"(?:\[(?P<six>[^\[\]]*)\]|(?P<host>[^\[\]:]*))(?::(?P<port>[0-9]{1,5}))?")


def _parse_allowed(entry: str) -> _Allowed:
    if entry.count(":") > 1 and "[" not in entry:
        return _Allowed(IPv6Network(entry), None)
    match = _ALLOWED.fullmatch(entry)
    if match is None:
        raise ValueError("neither a host, an IP nor a CIDR, with or without :port")
    port = None if match["port"] is None else int(match["port"])
    if port is not None and not 0 < port < 65536:
        raise ValueError("the port is out of range")
    if match["six"] is not None:
        return _Allowed(IPv6Network(match["six"]), port)
    if "/" in match["host"] or match["host"].replace(".", "").isdecimal():
        return _Allowed(IPv4Network(match["host"]), port)
    host = _parse_host(match["host"])
    if isinstance(host, str):
        return _Allowed(host.removesuffix("."), port)
    raise ValueError("write the address in its usual form")
