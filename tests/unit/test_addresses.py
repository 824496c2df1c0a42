from __future__ import annotations

import json
from pathlib import Path

import pytest

from handlers.errors import ServerError
from marsmith.addresses import Addresses, Tokens, bearer, free_addresses, read_properties

PROJECT = Path(__file__).parents[2]


def test_read_properties(tmp_path: Path) -> None:
    file = tmp_path / "config.properties"
    file.write_text("# a=1\n\nb = x=y \nb2=\n")
    assert read_properties(file) == {"b": "x=y", "b2": ""}


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=str(tmp_path / "none")):
        read_properties(tmp_path / "none")


def test_the_projects_own_addresses_are_loopback() -> None:
    addresses = Addresses.of(read_properties(PROJECT / "config.properties"))
    assert addresses == Addresses(
        "http://127.0.0.1:8080",
        "http://127.0.0.1:8081",
        "http://127.0.0.1:8082",
        "127.0.0.1:7070",
        "127.0.0.1:7071",
    )
    # What TorchServe takes without a configuration is the same
    assert Addresses.of({}) == addresses


def test_free_addresses_are_five_different_ones() -> None:
    addresses = Addresses.of(free_addresses())
    assert not addresses.grpc_tls
    places = [value for value in vars(addresses).values() if isinstance(value, str)]
    ports = {place.rpartition(":")[2] for place in places}
    assert len(ports) == 5
    assert "8080" not in ports


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
