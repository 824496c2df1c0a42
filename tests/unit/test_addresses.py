from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from handlers.errors import ServerError
from marsmith import addresses
from marsmith.addresses import (
    Addresses,
    Tokens,
    bearer,
    free_addresses,
    free_ports,
    read_properties,
)

PROJECT = Path(__file__).parents[2]


def test_read_properties(tmp_path: Path) -> None:
    file = tmp_path / "config.properties"
    file.write_text("# a=1\n\nb = x=y \nb2=\n")
    assert read_properties(file) == {"b": "x=y", "b2": ""}


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=str(tmp_path / "none")):
        read_properties(tmp_path / "none")


def test_the_projects_own_addresses_are_loopback() -> None:
    ours = Addresses.of(read_properties(PROJECT / "config.properties"))
    assert ours == Addresses(
        "http://127.0.0.1:8080",
        "http://127.0.0.1:8081",
        "http://127.0.0.1:8082",
        "127.0.0.1:7070",
        "127.0.0.1:7071",
    )
    # What TorchServe takes without a configuration is the same
    assert Addresses.of({}) == ours


def test_free_addresses_are_five_different_ones() -> None:
    found = Addresses.of(free_addresses())
    assert not found.grpc_tls
    places = [value for value in vars(found).values() if isinstance(value, str)]
    ports = {place.rpartition(":")[2] for place in places}
    assert len(ports) == 5
    assert "8080" not in ports


@pytest.fixture
def outgoing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the kernel's file with the ports of outgoing connections."""
    monkeypatch.setattr(addresses, "_OUTGOING", tmp_path / "ip_local_port_range")
    return tmp_path / "ip_local_port_range"


def test_free_ports_lie_below_those_of_outgoing_connections(outgoing: Path) -> None:
    outgoing.write_text("20000\t60999\n")
    found = free_ports(40)
    assert len(set(found)) == 40
    assert all(10_000 <= port < 20_000 for port in found)


def test_a_port_in_use_is_passed_over(outgoing: Path) -> None:
    with socket.socket() as taken:
        [port] = free_ports(1)
        taken.bind(("127.0.0.1", port))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(addresses, "_LOWEST", port)
            outgoing.write_text(f"{port + 1} 60999")
            # There is no other below, so that the kernel chooses.
            assert free_ports(1) != [port]


@pytest.mark.parametrize("content", [None, "1024 65535"])
def test_without_room_below_them_the_kernel_chooses(outgoing: Path, content: str | None) -> None:
    if content:
        outgoing.write_text(content)
    assert len(set(free_ports(5))) == 5


def test_tokens(tmp_path: Path) -> None:
    assert Tokens.read(tmp_path) == Tokens("", "")
    keys = {"inference": {"key": "a"}, "management": {"key": "b"}, "API": {"key": "c"}}
    (tmp_path / "key_file.json").write_text(json.dumps(keys))
    assert Tokens.read(tmp_path) == Tokens("a", "b")
    assert bearer("a") == {"authorization": "Bearer a"}
    assert bearer("") == {}


def test_a_broken_key_file_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "key_file.json").write_text("{}")
    with pytest.raises(ServerError, match="is not TorchServe's key file"):
        Tokens.read(tmp_path)
