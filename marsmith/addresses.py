"""Where a TorchServe listens and which tokens it wants, read from its own files."""

from __future__ import annotations

import errno
import json
import random
import socket
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from handlers import properties
from handlers.errors import ServerError

TOKEN_FILE = "key_file.json"
_LOOPBACK = "127.0.0.1"
# The first and last port that Linux gives to outgoing connections.
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Above those of well-known services, TorchServe's own among them.
_LOWEST, _TRIES = 10_000, 100
# What a ``config.properties`` has by another name
_IN_VALUES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r", "\f": r"\f"})
_IN_KEYS = _IN_VALUES | {ord(character): f"\\{character}" for character in "=: #!"}
# What TorchServe's launcher reads of it, which knows no escapes; it hands on what Java needs
_LAUNCHERS = ("model_store", "vmargs", "plugins_path")


def read_properties(path: Path) -> dict[str, str]:
    """The settings of a ``config.properties``; raises ServerError where it cannot be read."""
    try:
        return properties.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ServerError(f"cannot read TorchServe's configuration {path}: {error}") from error


def write_properties(path: Path, settings: Mapping[str, str]) -> None:
    """Write settings as TorchServe's front end reads them, and as its launcher does its own.

    Raises ServerError where there is no room or no right.
    """
    lines = (
        f"{key}={value}\n"
        if key in _LAUNCHERS
        else f"{_ascii(key.translate(_IN_KEYS))}={_ascii(value.translate(_IN_VALUES))}\n"
        for key, value in settings.items()
    )
    try:
        path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise ServerError(
            f"cannot write TorchServe's configuration {path}: {error.strerror}: make room or give"
            " rights there"
        ) from error


def _ascii(text: str) -> str:
    """Without what Java, which reads Latin-1, would read otherwise."""
    units = text.encode("utf-16-be")
    codes = (int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2))
    return "".join(chr(code) if code < 0x80 else f"\\u{code:04x}" for code in codes)


@dataclass(frozen=True)
class Addresses:
    """URLs of the REST interfaces and ``host:port`` of the gRPC ones, which may want TLS."""

    inference: str
    management: str
    metrics: str
    grpc_inference: str
    grpc_management: str
    grpc_tls: bool = False

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> Addresses:
        """The addresses of a configuration, TorchServe's own defaults where it names none."""

        def grpc(name: str, port: str) -> str:
            host = properties.get(f"grpc_{name}_address", "127.0.0.1")
            return join(host.strip("[]"), properties.get(f"grpc_{name}_port", port))

        return cls(
            inference=properties.get("inference_address", "http://127.0.0.1:8080").rstrip("/"),
            management=properties.get("management_address", "http://127.0.0.1:8081").rstrip("/"),
            metrics=properties.get("metrics_address", "http://127.0.0.1:8082").rstrip("/"),
            grpc_inference=grpc("inference", "7070"),
            grpc_management=grpc("management", "7071"),
            grpc_tls=properties.get("enable_grpc_ssl", "false").lower() == "true",
        )


def hosts(properties: Mapping[str, str]) -> dict[str, tuple[str, int, bool]]:
    """Host, port and whether TLS is on, by what listens there; raises ServerError."""
    try:
        return _hosts(properties)
    except ValueError as error:
        raise ServerError(f"an address or a port of the configuration is none: {error}") from error


def _hosts(properties: Mapping[str, str]) -> dict[str, tuple[str, int, bool]]:
    found = Addresses.of(properties)
    places = {}
    for name in ("inference", "management", "metrics"):
        url = urlsplit(getattr(found, name))
        # A socket's file is no port.
        if url.scheme != "unix":
            default = 443 if url.scheme == "https" else 80
            places[name] = (url.hostname or "", url.port or default, url.scheme == "https")
    for name in ("grpc_inference", "grpc_management"):
        host, port = split(getattr(found, name))
        places[name] = (host, int(port), found.grpc_tls)
    return places


def split(address: str) -> tuple[str, str]:
    """Host and port of ``host:port``; the host, which IPv6 has in brackets there, is without."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port


def join(host: str, port: int | str) -> str:
    """``host:port`` as a URL and gRPC want it, with IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind_problem(host: str, port: int) -> str | None:
    """Why nobody can listen there now; None where somebody can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family)) as probe:
        # As Java does it: a port that a server has just left is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            return f"cannot be had: {getattr(error, 'strerror', None) or error}"
    return None


def free_addresses(configured: Mapping[str, str] | None = None) -> dict[str, str]:
    """Settings for ``config.properties`` with loopback ports that nobody uses right now.

    A REST address of ``configured`` that has TLS keeps it, and its host, which the certificate
    names. Raises ServerError where an address of it is none.
    """
    ports, known = free_ports(5), hosts(configured or {})
    rest = {}
    for name, port in zip(("inference", "management", "metrics"), ports, strict=False):
        host, _, secure = known.get(name, (_LOOPBACK, 0, False))
        place = f"https://{join(host, port)}" if secure else f"http://{_LOOPBACK}:{port}"
        rest[f"{name}_address"] = place
    return {
        **rest,
        "grpc_inference_port": str(ports[3]),
        "grpc_management_port": str(ports[4]),
    }


def free_ports(count: int) -> list[int]:
    """Different loopback ports that nobody uses right now, below those of outgoing connections.

    One among those may go to somebody's connection before a server of ours listens there. Where the
    kernel tells no such range, or leaves no room below it, the kernel chooses.
    """
    with ExitStack() as stack:
        # All are held until every one is known, so that no two are the same.
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            _bind(one)
        return [int(one.getsockname()[1]) for one in held]


def _bind(one: socket.socket) -> None:
    try:
        first_outgoing = int(_OUTGOING.read_text(encoding="utf-8").split()[0])
    except FileNotFoundError:
        first_outgoing = 0
    below = range(_LOWEST, first_outgoing)
    # By chance, so that others who look at the same moment seldom find the same one.
    for port in random.sample(below, min(_TRIES, len(below))):
        try:
            one.bind((_LOOPBACK, port))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    one.bind((_LOOPBACK, 0))


@dataclass(frozen=True)
class Tokens:
    """The keys of ``key_file.json``; empty where token authorization is off."""

    inference: str = ""
    management: str = ""

    @classmethod
    def read(cls, home: Path) -> Tokens:
        """The tokens of the TorchServe whose working folder is ``home``.

        Without a key file they are empty: TorchServe answers 400 to every request then, unless
        ``disable_token_authorization=true``.
        """
        path = home / TOKEN_FILE
        try:
            keys = json.loads(path.read_text(encoding="utf-8"))
            return cls(keys["inference"]["key"], keys["management"]["key"])
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ServerError(
                f"{path} is not TorchServe's key file ({error!r}): restart the server, which writes"
                " a new one"
            ) from error


def bearer(token: str) -> dict[str, str]:
    """The header (of REST) or metadata (of gRPC, in small letters) that carries a token."""
    return {"authorization": f"Bearer {token}"} if token else {}
