from __future__ import annotations

import json
import re
import socket
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ts.model_server import load_properties

from handlers.errors import ServerError
from handlers.properties import parse
from marsmith import addresses, doctor_settings
from marsmith.addresses import (
    Addresses,
    Tokens,
    bearer,
    free_addresses,
    free_ports,
    hosts,
    read_properties,
    write_properties,
)

PROJECT = Path(__file__).parents[2]


def test_read_properties(tmp_path: Path) -> None:
    file = tmp_path / "config.properties"
    file.write_text("# a=1\n\nb = x=y \nb2=\n")
    assert read_properties(file) == {"b": "x=y", "b2": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("require_signature: a.pub", {"require_signature": "a.pub"}),
        ("disable_token_authorization true\n", {"disable_token_authorization": "true"}),
        ("\t a\t:\fb = c \r\n!d=e\r# f\\\ng=h", {"a": "b = c", "g": "h"}),
        ("a=1\na:2", {"a": "2"}),
        ("models={\\\n  x\\\\\n\\\n# y=z", {"models": "{x\\"}),
        ("a\\ \\=\\:\\#b=\\u0063\\ud83d\\ude00\\t\\d", {"a =:#b": "c\U0001f600\td"}),
        ("a=b\\", {"a": "b"}),
        ("inference_address=http\\://h\\:1", {"inference_address": "http://h:1"}),
        ("a\x0bb\x85=c\u2028d", {"a\x0bb\x85": "c\u2028d"}),
    ],
)
def test_properties_are_read_as_java_reads_them(
    text: str, expected: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "config.properties"
    file.write_bytes(text.encode())
    assert read_properties(file) == expected


@pytest.mark.parametrize("text", ["a=\\u12", "\\uxyz1=b", "a=\\ud83d"])
def test_what_java_refuses_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.properties"
    file.write_text(text)
    with pytest.raises(ServerError, match=r"cannot read .*config\.properties"):
        read_properties(file)


SETTINGS = st.text(st.characters(exclude_categories=["Cs"])).map(str.strip)


@given(st.dictionaries(SETTINGS, SETTINGS))
def test_what_is_written_is_read_again(settings: dict[str, str]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "config.properties"
        write_properties(file, settings)
        assert read_properties(file) == settings


def test_what_is_written_is_for_java_and_for_the_launcher(tmp_path: Path) -> None:
    file = tmp_path / "config.properties"
    write_properties(
        file, {"certificate_file": "zertifik\u00e4t\U0001f600.pem", "model_store": r"a\b"}
    )
    # java.util.Properties reads bytes as Latin-1.
    read = parse(file.read_bytes().decode("latin-1"))
    assert read["certificate_file"] == "zertifik\u00e4t\U0001f600.pem"
    assert load_properties(str(file))["model_store"] == r"a\b"


@given(st.text(st.sampled_from("a=: \t\f\\u0n#!\r\n\x85")))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ValueError):
        found = parse(text)
        assert all(value == value.strip() for value in found.values())
        assert "\\" in text or not any(set(key) & set("=: \t\f\r\n") for key in found)


def test_a_full_disk_is_told_in_one_line() -> None:
    words = "^cannot write TorchServe's configuration /dev/full: No space left on device: make room"
    with pytest.raises(ServerError, match=words):
        write_properties(Path("/dev/full"), {"model_store": "a"})


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


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_is_taken_with_brackets_and_without(host: str) -> None:
    settings = {"grpc_inference_address": host}
    # As gRPC wants a target
    assert Addresses.of(settings).grpc_inference == "[::1]:7070"
    assert hosts(settings)["grpc_inference"] == ("::1", 7070, False)
    assert [one.level for one in doctor_settings._addresses(settings)] == ["ok"] * 5
    assert "[::1]:7070" in {one.text for one in doctor_settings._addresses(settings)}


def test_free_addresses_are_five_different_ones() -> None:
    found = Addresses.of(free_addresses())
    assert not found.grpc_tls
    places = [value for value in vars(found).values() if isinstance(value, str)]
    ports = {place.rpartition(":")[2] for place in places}
    assert len(ports) == 5
    assert "8080" not in ports


def test_free_addresses_keep_tls_and_the_host_that_its_certificate_names() -> None:
    configured = {
        "inference_address": "https://models.example:8443",
        "metrics_address": "http://0.0.0.0:8082",
        "management_address": "unix:///tmp/socket",
    }
    found = Addresses.of(free_addresses(configured))
    assert re.fullmatch(r"https://models\.example:\d{5}", found.inference)
    assert not found.inference.endswith(":8443")
    for plain in (found.metrics, found.management):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d{5}", plain)


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
