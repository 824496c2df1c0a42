"""``marsmith inspect`` and ``diff``: what an archive says of itself, and of another one."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from handlers.errors import ArchiveError
from handlers.integrity import sha256
from marsmith import inspection, keys, signing
from marsmith.commands import diff, inspect

Changed = Callable[[dict[str, bytes | None]], Path]


@pytest.fixture
def changed(lenet5: Path, tmp_path: Path) -> Changed:
    """The archive with other files; None leaves one out."""

    def write(files: dict[str, bytes | None]) -> Path:
        path = tmp_path / "changed.mar"
        with zipfile.ZipFile(lenet5) as old:
            content = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w") as new:
            for name, data in {**content, **files}.items():
                if data is not None:
                    new.writestr(name, data)
        return path

    return write


def edited(lenet5: Path, member: str, **changes: Any) -> dict[str, bytes | None]:
    with zipfile.ZipFile(lenet5) as content:
        return {member: json.dumps({**json.loads(content.read(member)), **changes}).encode()}


def run(module: Any, *arguments: object) -> Result:
    return CliRunner().invoke(module.command, [str(argument) for argument in arguments])


def test_everything_is_told(lenet5: Path) -> None:
    shown = run(inspect, lenet5, "--files")
    assert shown.exit_code == 0, shown.output
    text = " ".join(shown.output.split())
    for part in (
        "lenet5_digits 1.0",
        sha256(lenet5),
        "Apache-2.0",
        "image-classification",
        "torchscript fp32",
        "resize [32, 32]",
        "10: 0, 1, 2, 3, 4, ...",
        "golden/0.png, golden/1.png",
        "pictures 8",
        "max_pixels 50000000",
        "batchSize 8",
        "lenet5_digits.pth, sha256 6c8761b6f8a8",
        "handlers/entry.py",
        "signature none",
    ):
        assert part in text, part


def test_json_has_every_file_and_package(lenet5: Path) -> None:
    found = json.loads(run(inspect, lenet5, "--json").output)
    with zipfile.ZipFile(lenet5) as content:
        assert [file["name"] for file in found["files"]] == sorted(content.namelist())
    assert {file["state"] for file in found["files"]} == {"as built"}
    assert found["packages"]["torch"]
    assert found["labels"] == list("0123456789")
    assert found["signature"] == {"signed": False, "by": None, "problem": None}


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"model.pt": b"other"}, "model.pt: changed"),
        ({"extra.py": b""}, "extra.py: added"),
        ({"golden/0.png": None}, "golden/0.png: missing"),
    ],
)
def test_what_is_not_as_built_is_told(
    changed: Changed, files: dict[str, bytes | None], line: str
) -> None:
    shown = run(inspect, changed(files))
    assert shown.exit_code == 1
    assert line in shown.output


def test_a_signature_is_checked_by_the_keys_that_are_given(lenet5: Path, tmp_path: Path) -> None:
    secret, public = keys.generate(tmp_path / "release")
    path = tmp_path / lenet5.name
    path.write_bytes(lenet5.read_bytes())
    shown = run(inspect, path, "--key", public)
    assert (shown.exit_code, "is not signed" in shown.output) == (1, True)
    signing.sign(path, secret)
    assert "not checked: give --key PUBLIC" in run(inspect, path).output
    shown = run(inspect, path, "--key", public)
    assert (shown.exit_code, "by release.pub, over every byte" in shown.output) == (0, True)


@pytest.mark.parametrize(
    ("member", "content"),
    [
        *[("marsmith.json", content) for content in (None, b"[]", b"5", b"{}", b"{")],
        *[("MAR-INF/RECORD.json", content) for content in (None, b"[]", b"5", b"{}", b"{")],
        *[("parity.json", content) for content in (None, b"{")],
        *[("golden/requests.json", content) for content in (b"[]", b"5", b"[{}]", b"{")],
        ("model-config.yaml", b"a: b: c"),
    ],
)
def test_what_is_no_archive_of_ours_says_so(
    changed: Changed, member: str, content: bytes | None
) -> None:
    with pytest.raises(ArchiveError, match=r"changed\.mar is no"):
        inspection.read(changed({member: content}))


def test_a_text_of_the_archive_steers_no_terminal(lenet5: Path, changed: Changed) -> None:
    path = changed(edited(lenet5, "marsmith.json", labels=["\x1b[2Jgone"]))
    assert "\x1b[2J" not in run(inspect, path).output
    assert "\x1b[2J" not in run(diff, lenet5, path).output


def test_nothing_differs_from_itself(lenet5: Path) -> None:
    shown = run(diff, lenet5, lenet5)
    assert (shown.exit_code, shown.output) == (0, "nothing differs\n")


def test_every_kind_of_difference_is_told(lenet5: Path, changed: Changed) -> None:
    labels = ["0", "2", "1", *"345678", "nine"]
    path = changed(
        edited(lenet5, "marsmith.json", version="2.0", labels=labels)
        | {"handlers/entry.py": b"", "model.pt": b"other", "handlers/new.py": b"", "LICENSE": b""}
        | {"golden/1.png": None}
    )
    shown = run(diff, lenet5, path)
    assert shown.exit_code == 1
    assert shown.output.splitlines() == [
        'version: "1.0" -> "2.0"',
        "labels removed: 9",
        "labels added: nine",
        "labels moved: 1, 2",
        "handlers/entry.py: changed",
        "handlers/new.py: added",
        "LICENSE: added",
        "golden/1.png: removed",
        "model.pt: changed",
    ]
    found = json.loads(run(diff, lenet5, path, "--json").output)
    assert found["values"] == {"version": ["1.0", "2.0"]}
    assert found["files"]["model.pt"] == "changed"


def test_a_damaged_member_is_one_line(lenet5: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.mar"
    data = bytearray(lenet5.read_bytes())
    with zipfile.ZipFile(lenet5) as content:
        member = content.getinfo("model-config.yaml")
        text = content.read(member)
    place = data.index(text, member.header_offset)
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="damaged.mar is no archive of marsmith"):
        inspection.read(path)
