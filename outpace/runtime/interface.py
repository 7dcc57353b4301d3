"""The network interface over which gloo reaches other hosts."""

import contextlib
import os
import socket
from ipaddress import ip_address
from typing import Any

import psutil

NAME = "GLOO_SOCKET_IFNAME"
ELSEWHERE = ("192.0.2.1", "2001:db8::1")
"""Addresses for examples, which nothing is sent to: the way there is the way out of this host."""


def choose_interface(meeting_at: str) -> None:
    """Set GLOO_SOCKET_IFNAME, unless it is set, where gloo would tell other hosts an address of
    this host alone: it tells that of the host's name, which Debian's /etc/hosts says is 127.0.1.1.
    `meeting_at` is MASTER_ADDR, to which the interface should lead."""
    if NAME in os.environ or _is_local(meeting_at) or not _are_local(socket.gethostname()):
        return
    for there in (*_addresses(meeting_at), *ELSEWHERE):
        with contextlib.suppress(OSError):
            if not _is_local(here := _address_towards(there)) and (name := _interface_of(here)):
                os.environ[NAME] = name
                return


def _is_local(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _are_local(name: str) -> bool:
    return all(map(_is_local, _addresses(name)))


def _addresses(name: str) -> list[str]:
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(name, 0, type=socket.SOCK_DGRAM)]
    except OSError:  # gloo then takes the loopback address
        return []


def _address_towards(there: str) -> str:
    """This host's address when it sends to `there`; nothing is sent."""
    family = socket.AF_INET6 if ":" in there else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.connect((there, 9))
        return str(s.getsockname()[0])


def _interface_of(address: str) -> str | None:
    interfaces: dict[str, list[Any]] = psutil.net_if_addrs()
    for name, found in interfaces.items():
        if any(one.address.partition("%")[0] == address for one in found):
            return name
    return None
