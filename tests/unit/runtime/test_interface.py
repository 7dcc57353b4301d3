"""The interface that gloo is told to use, where it would tell other hosts a loopback address."""

import os
import socket

import pytest

from outpace.runtime import interface
from outpace.runtime.interface import NAME, choose_interface


@pytest.fixture(autouse=True)
def host(monkeypatch):
    """Debian's: its name is an address of its own, and eth0 leads to 10.9.0.*."""
    addresses = {"me": ["127.0.1.1"], "first": ["10.9.0.1"]}
    towards = {"10.9.0.1": "10.9.0.2", "127.0.1.1": "127.0.0.1", "192.0.2.1": "10.9.0.2"}
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "me")
    monkeypatch.setattr(interface, "_addresses", lambda name: addresses.get(name, []))
    monkeypatch.setattr(interface, "_address_towards", towards.__getitem__)
    monkeypatch.setattr(interface, "_interface_of", {"10.9.0.2": "eth0", "127.0.0.1": "lo"}.get)
    yield addresses
    os.environ.pop(NAME, None)


@pytest.mark.parametrize("meeting_at", ["first", "me"], ids=["elsewhere", "on this host"])
def test_it_leads_to_where_the_processes_meet_or_else_out_of_the_host(meeting_at):
    choose_interface(meeting_at)
    assert os.environ[NAME] == "eth0"


def test_it_is_left_alone_where_it_is_set_or_not_needed(host, monkeypatch):
    for local in ("127.0.0.1", "localhost", "::1"):
        choose_interface(local)
    assert NAME not in os.environ, "all processes are here"
    host["me"] = ["10.9.0.2"]
    choose_interface("first")
    assert NAME not in os.environ, "gloo knows itself"
    host["me"] = []
    monkeypatch.setenv(NAME, "mine")
    choose_interface("first")
    assert os.environ[NAME] == "mine"


def test_the_interface_of_an_address(monkeypatch):
    monkeypatch.undo()
    assert interface._interface_of("127.0.0.1") == "lo"
    assert interface._interface_of("192.0.2.7") is None
    assert interface._address_towards("127.0.0.1") == "127.0.0.1"
