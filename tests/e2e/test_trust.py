"""Hostile archives and TLS, with a real TorchServe, real keys and real certificates."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
from certificates import self_signed
from tiny import marsmith, pack

from handlers.errors import ServerError
from handlers.integrity import RECORD, SIGNATURE, sha256
from marsmith import journal, keys, signing
from marsmith.addresses import Tokens, bearer
from marsmith.archive import MANIFEST, moment, unpack, zip_folder
from marsmith.grpc_client import GrpcClient
from marsmith.operate import roll_out
from marsmith.rollout import Options
from marsmith.server import TorchServe
from marsmith.steps import RolledBack


def hostile(store: Path, marker: Path, version: str = "9.0") -> str:
    """An archive that runs code before any handler is loaded: Python imports such a file itself."""
    code = f"open({str(marker)!r}, 'w').write('it ran')\n"
    return pack(store, "hostile", version, extra={"sitecustomize.py": code})


@pytest.fixture(scope="module")
def guarded(
    make_home: Callable[[], Path], lenet5: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TorchServe]:
    """A server that demands signatures, with one signed archive and one hostile."""
    home = make_home()
    assert_done(marsmith(home, "keygen", "release"), "release.key signs")
    shutil.copy(lenet5, home / "model-store")
    archive = f"model-store/{lenet5.name}"
    assert_done(marsmith(home, "sign", archive, "--key", "release.key"), f"signed {archive}")
    hostile(home / "model-store", home / "marker")
    policy = {"require_signature": "release.pub", "enable_model_api": "true"}
    with TorchServe(home, config=policy) as server:
        server.wait_ready(120)
        yield server


def assert_done(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


def test_who_signed_is_told(guarded: TorchServe, lenet5: Path) -> None:
    signed = ("verify-signature", f"model-store/{lenet5.name}")
    keys.generate(guarded.home / "another")
    several = ("--key", "another.pub", "--key", "release.pub")
    done = marsmith(guarded.home, *signed, *several)
    assert_done(done, f"model-store/{lenet5.name}: every file is as signed by release.pub")
    refused = marsmith(guarded.home, *signed, "--key", "another.pub")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {lenet5.name}: ")
    assert "another.pub" in refused.stderr
    unsigned = marsmith(guarded.home, signed[0], "model-store/hostile-9.0.mar", *several)
    assert unsigned.returncode == 1
    assert "hostile-9.0.mar is not signed" in unsigned.stderr


def test_only_signed_archives_are_served(guarded: TorchServe, digits: dict[str, bytes]) -> None:
    assert guarded.refused.keys() == {"hostile-9.0.mar"}
    with guarded.client() as client:
        assert client.models() == ["lenet5_digits"]
        assert client.predict("lenet5_digits", digits["3"]).json()[0]["label"] == "3"
    assert not (guarded.home / "marker").exists()


def forge(archive: Path, folder: Path, signature: bytes | None) -> Path:
    """Version 2.0 of an archive with other code and a record that fits it."""
    unpack(archive, folder)
    manifest = folder / MANIFEST
    manifest.write_text(manifest.read_text().replace('"1.0"', '"2.0"'))
    with (folder / "handlers/entry.py").open("a") as entry:
        entry.write("raise SystemExit\n")
    record = json.loads((folder / RECORD).read_text())
    record["sha256"] = {name: sha256(folder / name) for name in record["sha256"]}
    (folder / RECORD).write_text(json.dumps(record))
    (folder / SIGNATURE).unlink()
    if signature:
        (folder / SIGNATURE).write_bytes(signature)
    path = folder.with_suffix(".mar")
    zip_folder(folder, path, moment())
    return path


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "with another's signature"])
def test_a_rollout_of_what_is_not_as_signed_is_refused(
    guarded: TorchServe, tmp_path: Path, signed: bool
) -> None:
    original = guarded.model_store / "lenet5_digits-1.0.mar"
    with zipfile.ZipFile(original) as content:
        signature = content.read(SIGNATURE) if signed else None
    path = forge(original, tmp_path / "forged", signature)
    with pytest.raises(RolledBack, match="no signature of" if signed else "is not signed"):
        roll_out(guarded.running, path, Options(), False, lambda _: None)
    assert journal.read(guarded.home)[-1].result == journal.REFUSED
    assert journal.read(guarded.home)[-1].result == journal.REFUSED
    assert journal.read(guarded.home)[-1].result == journal.REFUSED
    assert journal.read(guarded.home)[-1].result == journal.REFUSED
    assert journal.read(guarded.home)[-1].result == journal.REFUSED
    assert journal.read(guarded.home)[-1].result == journal.REFUSED
    assert journal.read(guarded.home)[-1].result == journal.REFUSED
    with guarded.client() as client:
        assert [found["modelVersion"] for found in client.describe("lenet5_digits", "all")] == [
            "1.0"
        ]


def test_strict_serve_does_not_go_on_without_a_refused_archive(home: Path, lenet5: Path) -> None:
    secret, _ = keys.generate(home / "release")
    shutil.copy(lenet5, home / "model-store")
    signing.sign(home / "model-store" / lenet5.name, secret)
    hostile(home / "model-store", home / "marker")
    with (home / "config.properties").open("a") as config:
        config.write("require_signature=release.pub\n")
    ended = marsmith(home, "serve", "--strict")
    assert ended.returncode == 1
    assert "left out: hostile-9.0.mar is not signed" in ended.stderr
    assert "1 archives are refused" in ended.stderr
    assert not (home / "marker").exists()


# TLS, and what a hostile archive does where nothing is demanded -------------------------------


@pytest.fixture(scope="module")
def encrypted(make_home: Callable[[], Path]) -> Iterator[TorchServe]:
    home = make_home()
    self_signed(home)
    hostile(home / "model-store", home / "marker")
    settings = {"private_key_file": "server.key", "certificate_file": "server.pem"}
    plain = TorchServe(home).properties
    for name in ("inference_address", "management_address"):
        settings[name] = plain[name].replace("http:", "https:")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(home / "server.pem"))
        with TorchServe(home, config={**settings, "enable_grpc_ssl": "true"}) as server:
            server.wait_ready(120)
            yield server


def test_without_a_policy_an_archives_code_runs_before_any_check(encrypted: TorchServe) -> None:
    assert (encrypted.home / "marker").read_text() == "it ran"


def test_rest_is_encrypted_and_proves_who_it_is(encrypted: TorchServe) -> None:
    url = f"{encrypted.running.addresses.inference}/predictions/hostile"
    request = urllib.request.Request(
        url, b"x", bearer(Tokens.read(encrypted.home).inference), method="POST"
    )
    trusting = ssl.create_default_context(cafile=encrypted.home / "server.pem")
    with urllib.request.urlopen(request, timeout=30, context=trusting) as reply:
        assert json.load(reply)["version"] == "9.0"
    with pytest.raises(URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(request, timeout=30, context=ssl.create_default_context())
    with pytest.raises((URLError, OSError)):
        urllib.request.urlopen(url.replace("https:", "http:"), timeout=30)


def test_old_tls_is_refused(encrypted: TorchServe) -> None:
    old = ssl.create_default_context(cafile=encrypted.home / "server.pem")
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(URLError, match="(?i)protocol|handshake"):
        urllib.request.urlopen(encrypted.running.addresses.inference, timeout=30, context=old)


def test_grpc_is_encrypted_and_proves_who_it_is(
    encrypted: TorchServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = encrypted.running
    tokens = Tokens.read(encrypted.home)
    plain = replace(running.addresses, grpc_tls=False)
    with GrpcClient(plain, tokens, timeout=5) as client, pytest.raises(ServerError):
        client.predict("hostile", {"data": b"x"})
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with GrpcClient.of(running, timeout=5) as client, pytest.raises(ServerError):
        client.predict("hostile", {"data": b"x"})
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(encrypted.home / "server.pem"))
    with GrpcClient.of(running, timeout=30) as client:
        assert client.predict("hostile", {"data": b"x"}).json()["version"] == "9.0"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(encrypted.home / "none.pem"))
    with pytest.raises(ServerError, match=r"none\.pem cannot be read .*: name the PEM file"):
        GrpcClient.of(running, timeout=5)
