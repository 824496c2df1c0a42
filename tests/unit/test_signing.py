"""Signatures: every byte of a signed archive is covered, and a policy is never off by mistake."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec

from handlers import integrity
from handlers.bundle import Bundle
from handlers.errors import ArchiveError, IntegrityError, MarsmithError, ServerError, SignatureError
from handlers.inputs import ImageInput
from handlers.integrity import RECORD, SIGNATURE
from marsmith import archive, cli, keys, signing
from marsmith.addresses import read_properties
from marsmith.choosing import Choice, choose
from marsmith.environment import temp_folder
from marsmith.server import TorchServe

FILES = {"model.pth": b"weights", "model-config.yaml": b"minWorkers: 1\n", "handlers/a.py": b"a"}


def pack(place: Path, version: str = "1.0") -> Path:
    folder = place / f"staged-{version}"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    task, labels = "image-classification", ["a"]
    bundle = Bundle("m", version, task, "eager", "model.pth", labels, ImageInput())
    path = place / f"m-{version}.mar"
    archive.pack(folder, bundle, path)
    return path


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return keys.generate(tmp_path_factory.mktemp("keys") / "release")


@pytest.fixture
def signed(tmp_path: Path, pair: tuple[Path, Path]) -> Path:
    path = pack(tmp_path)
    signing.sign(path, pair[0])
    return path


def test_a_signed_archive_passes_and_loads_as_before(
    signed: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    assert signing.check(signed, [pair[1]]) == pair[1]
    archive.unpack(signed, tmp_path / "out")
    integrity.verify(tmp_path / "out")
    assert (tmp_path / "out/model.pth").read_bytes() == b"weights"


def test_signing_is_reproducible_and_replaces(signed: Path, pair: tuple[Path, Path]) -> None:
    before = signed.read_bytes()
    signing.sign(signed, pair[0])
    assert signed.read_bytes() == before
    assert [path.name for path in signed.parent.iterdir() if path.name[0] == "."] == []


def test_a_signature_is_on_the_disk_before_it_is_in_its_place_and_nobody_else_changes_the_store(
    signed: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    replace = Path.replace

    def watched(path: Path, target: Path) -> Path:
        assert path.stat().st_ino in synced
        with (target.parent / ".lock").open("ab") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    monkeypatch.setattr(Path, "replace", watched)
    signing.sign(signed, pair[0])
    assert synced == [signed.stat().st_ino]


@pytest.mark.parametrize("meanwhile", ["replaced", "written", "removed"])
def test_what_takes_the_archive_s_place_while_it_is_signed_stays(
    signed: Path, pair: tuple[Path, Path], meanwhile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    zip_folder = archive.zip_folder

    def change(*words: Any) -> None:
        zip_folder(*words)
        if meanwhile != "written":
            signed.unlink()
        if meanwhile != "removed":
            signed.write_bytes(b"another build")

    monkeypatch.setattr(archive, "zip_folder", change)
    words = r"^m-1\.0\.mar was replaced or removed while it was signed"
    with pytest.raises(SignatureError, match=words):
        signing.sign(signed, pair[0])
    assert signed.exists() == (meanwhile != "removed")
    assert meanwhile == "removed" or signed.read_bytes() == b"another build"


def test_every_changed_byte_is_refused(signed: Path, pair: tuple[Path, Path]) -> None:
    content = signed.read_bytes()
    # In the zip's own structures as well as in the files.
    for at in range(0, len(content), 7):
        changed = bytearray(content)
        changed[at] ^= 1
        signed.write_bytes(changed)
        with pytest.raises((SignatureError, IntegrityError), match=r"^m-1\.0\.mar"):
            signing.check(signed, [pair[1]])


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_what_is_added_or_cut_off_is_refused(
    signed: Path, pair: tuple[Path, Path], cut: int
) -> None:
    content = signed.read_bytes()
    for changed in (content[:-cut], content + b"x" * cut, b"x" * cut + content):
        signed.write_bytes(changed)
        with pytest.raises((SignatureError, IntegrityError)):
            signing.check(signed, [pair[1]])


def _rewrite(path: Path, changes: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path) as old:
        files = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in {**files, **changes}.items():
            new.writestr(name, content)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_refused_with_the_files_name(
    signed: Path, pair: tuple[Path, Path], name: str
) -> None:
    # Zipped anew, so that the zip's own checksum is right.
    _rewrite(signed, {name: bytes([FILES[name][0] ^ 1]) + FILES[name][1:]})
    with pytest.raises(IntegrityError, match=rf"^m-1\.0\.mar: {name} was changed after the build"):
        signing.check(signed, [pair[1]])


def test_an_added_file_is_refused(signed: Path, pair: tuple[Path, Path]) -> None:
    _rewrite(signed, {"sitecustomize.py": b"print('pwned')"})
    with pytest.raises(IntegrityError, match=r"sitecustomize\.py was added"):
        signing.check(signed, [pair[1]])


def test_a_file_that_only_a_reader_from_the_beginning_sees_is_refused(
    signed: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    extra = tmp_path / "extra.zip"
    with zipfile.ZipFile(extra, "w") as content:
        content.writestr("sitecustomize.py", b"print('pwned')")
    local = extra.read_bytes().partition(b"PK\x01\x02")[0]
    # Python finds the files by the directory at the end, and so none of this one.
    signed.write_bytes(local + signed.read_bytes())
    with zipfile.ZipFile(signed) as content:
        assert "sitecustomize.py" not in content.namelist()
    with pytest.raises(IntegrityError, match="the zip around them was changed"):
        signing.check(signed, [pair[1]])


def test_a_record_that_fits_changed_files_is_no_longer_signed(
    signed: Path, pair: tuple[Path, Path]
) -> None:
    with zipfile.ZipFile(signed) as content:
        record = content.read(RECORD)
    _rewrite(signed, {RECORD: record + b"\n"})
    with pytest.raises(SignatureError, match="the record was changed, or another key has signed"):
        signing.check(signed, [pair[1]])


def test_a_bomb_is_refused_before_it_is_unpacked(signed: Path, pair: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(signed, "a", zipfile.ZIP_DEFLATED) as content:
        content.writestr("bomb", bytes(10_000_000))
    with pytest.raises(SignatureError, match="it was not zipped by marsmith"):
        signing.check(signed, [pair[1]])


def test_entries_that_share_their_bytes_are_no_way_around_that(
    signed: Path, pair: tuple[Path, Path]
) -> None:
    with zipfile.ZipFile(signed, "a") as content:
        content.writestr("large", bytes(10_000))
        content.filelist.extend(content.filelist[-1:] * 9)
    with pytest.raises(SignatureError, match="it was not zipped by marsmith"):
        signing.check(signed, [pair[1]])


def test_one_of_several_keys_is_enough_and_a_strange_one_is_not(
    signed: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    other = keys.generate(tmp_path / "other")[1]
    assert signing.check(signed, [other, pair[1]]) == pair[1]
    with pytest.raises(SignatureError, match=r"no signature of .* by other\.pub"):
        signing.check(signed, [other])


def test_an_unsigned_archive_is_refused(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    with pytest.raises(SignatureError, match=r"m-1\.0\.mar is not signed"):
        signing.check(pack(tmp_path), [pair[1]])


def test_a_damaged_archive_is_not_signed(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    path = pack(tmp_path)
    _rewrite(path, {"model.pth": b"Weights"})
    before = path.read_bytes()
    with pytest.raises(IntegrityError, match=r"^m-1\.0\.mar: model\.pth was changed"):
        signing.sign(path, pair[0])
    assert path.read_bytes() == before


def test_of_several_the_one_that_cannot_be_signed_is_named(
    signed: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "cut.mar").write_bytes(signed.read_bytes()[:-40])
    words = ["sign", str(signed), str(tmp_path / "cut.mar"), "--key", str(pair[0])]
    done = CliRunner().invoke(cli.group, words)
    assert isinstance(done.exception, IntegrityError)
    assert str(done.exception).startswith("cut.mar: it cannot be unpacked: ")


@pytest.mark.parametrize("room", range(len(FILES) + 2))
def test_a_full_disk_is_no_fault_of_an_archive(
    signed: Path, pair: tuple[Path, Path], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, copies, copy = signed.read_bytes(), [0], shutil.copyfileobj

    def full(*words: Any) -> None:
        """While files are unpacked and, after them, while they are zipped again."""
        copies[0] += 1
        if copies[0] > room * 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(*words)

    monkeypatch.setattr(shutil, "copyfileobj", full)
    for work in (lambda: signing.check(signed, [pair[1]]), lambda: signing.sign(signed, pair[0])):
        copies[0] = 0
        words = r"^\S+ does not take .*m-1\.0\.mar.* \(No space left on device\): make room"
        with pytest.raises(ArchiveError, match=words):
            work()
    assert signed.read_bytes() == before
    assert [path.name for path in signed.parent.iterdir() if path.name[0] == "."] == []


def test_openssl_reads_the_keys_and_the_signature(
    signed: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here, and it is what must read the keys: apt-get install openssl")
    archive.unpack(signed, tmp_path / "out")
    command = f"pkeyutl -verify -pubin -inkey {pair[1]} -rawin -in {RECORD} -sigfile {SIGNATURE}"
    done = subprocess.run(
        [openssl, *command.split()],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "Signature Verified Successfully" in done.stdout + done.stderr


def test_the_private_key_is_private_and_never_replaced(pair: tuple[Path, Path]) -> None:
    assert stat.S_IMODE(pair[0].stat().st_mode) == 0o600
    with pytest.raises(SignatureError, match=r"cannot write the key .*release\.key: File exists"):
        keys.generate(pair[0].with_suffix(""))


@pytest.mark.parametrize("content", [None, b"", b"no key"])
def test_what_is_no_key_says_so(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "some.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SignatureError, match=r"some\.pem is no public key"):
        signing.check(pack(tmp_path), [file])
    with pytest.raises(SignatureError, match=r"some\.pem is no plain private key"):
        signing.sign(pack(tmp_path / "b"), file)


# The policy --------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, pair: tuple[Path, Path]) -> Iterator[Path]:
    """A project with a signed and an unsigned version, which demands signatures."""
    home = tmp_path / "home"
    (home / "model-store").mkdir(parents=True)
    shutil.copy(pair[1], home)
    (home / "config.properties").write_text("require_signature=release.pub\n")
    for version in ("1.0", "2.0"):
        pack(home / "model-store", version)
    signing.sign(home / "model-store/m-1.0.mar", pair[0])
    yield home
    shutil.rmtree(temp_folder(home))


def chosen(home: Path) -> Choice:
    return choose(home, home / "model-store", (), read_properties(home / "config.properties"))


@pytest.mark.parametrize("between", ["=", ": ", " ", "\t= \\\n "])
def test_the_server_leaves_out_what_is_not_signed(home: Path, between: str) -> None:
    (home / "config.properties").write_text(f"require_signature{between}release.pub\n")
    found = chosen(home)
    assert list(found.archives) == ["m-1.0.mar"]
    assert found.refused.keys() == {"m-2.0.mar"}
    assert "m-2.0.mar is not signed" in found.refused["m-2.0.mar"]


def test_the_server_leaves_out_what_was_changed_since(home: Path, pair: tuple[Path, Path]) -> None:
    (home / "config.properties").write_text("require_signature=release.pub\n")
    changed = home / "model-store/m-2.0.mar"
    signing.sign(changed, pair[0])
    assert len(chosen(home).archives) == 2
    changed.write_bytes(changed.read_bytes().replace(b"weights", b"weighty"))
    found = chosen(home)
    assert list(found.archives) == ["m-1.0.mar"]
    assert found.refused.keys() == {"m-2.0.mar"}


def test_the_server_does_not_start_with_nothing_signed(home: Path) -> None:
    with pytest.raises(ServerError, match=r"no archive may be served: m-2\.0\.mar is not signed"):
        TorchServe(home, archives=["m-2.0.mar"]).start()


def test_without_the_policy_nothing_is_refused(home: Path) -> None:
    (home / "config.properties").write_text("")
    found = chosen(home)
    assert (list(found.archives), found.refused) == (["m-2.0.mar", "m-1.0.mar"], {})


@pytest.mark.parametrize("setting", ["", " , ", "release.pub,missing.pub", "config.properties"])
def test_a_policy_that_names_no_key_is_an_error(home: Path, setting: str) -> None:
    with pytest.raises(SignatureError, match="names no public key|is no public key"):
        TorchServe(home, config={"require_signature": setting}).start()


def test_a_rollout_does_not_register_what_is_not_signed(home: Path) -> None:
    from marsmith.processes import Running
    from marsmith.rollout import Change, Options

    running = Running(0, home, home / "config.properties", 0.0)
    header = archive.Header("m", "2.0")
    # It must fail before it asks any server, so there is none.
    change = Change(running, (None, None), "m-2.0.mar", header, None, Options())  # type: ignore[arg-type]
    with pytest.raises(MarsmithError, match=r"m-2\.0\.mar is not signed"):
        change.register()


def test_keys_of_another_kind_are_refused(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    secret = pem.PrivateFormat.PKCS8, pem.NoEncryption()
    (tmp_path / "ec.key").write_bytes(other.private_bytes(pem.Encoding.PEM, *secret))
    shown = pem.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "ec.pub").write_bytes(other.public_key().public_bytes(pem.Encoding.PEM, shown))
    for read, name in ((keys.private, "ec.key"), (keys.public, "ec.pub")):
        with pytest.raises(SignatureError, match=f"{name} is not an Ed25519 key: make a pair"):
            read(tmp_path / name)


def test_half_a_pair_is_not_left_behind(tmp_path: Path) -> None:
    (tmp_path / "release.pub").write_text("of another key")
    with pytest.raises(SignatureError, match="release.pub"):
        keys.generate(tmp_path / "release")
    assert [path.name for path in tmp_path.iterdir()] == ["release.pub"]
