"""All that an archive says of itself, and what differs between two; nothing of them is run."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from handlers import bundle, golden
from handlers.errors import ArchiveError, GoldenError, IntegrityError, SignatureError
from handlers.integrity import RECORD, SIGNATURE, sha256
from marsmith import sbom, signing
from marsmith.archive import read_json

# What says of one file whether it is as the record has it.
AS_BUILT, CHANGED, ADDED, MISSING = "as built", "changed", "added", "missing"
# What a file that is damaged, or another's, raises at some place.
_UNREADABLE = (
    *(KeyError, TypeError, ValueError, AttributeError, GoldenError),
    *(yaml.YAMLError, zipfile.BadZipFile, zlib.error),
)
# Those of no weight between two archives: they follow from the rest.
_DERIVED = (RECORD, SIGNATURE, sbom.FILE, bundle.FILE)


def read(path: Path, keys: Sequence[Path] = ()) -> dict[str, Any]:
    """An archive as JSON values; ``keys`` are public ones to check its signature by.

    ``files`` have name, bytes, sha256 and state, ``packages`` are versions by name. Raises
    ArchiveError for what is none of marsmith's.
    """
    try:
        return _read(path, keys)
    except _UNREADABLE as error:
        raise ArchiveError(f"{path.name} is no archive of marsmith: {error!r}") from error


def _read(path: Path, keys: Sequence[Path]) -> dict[str, Any]:
    model = read_json(path, bundle.FILE)
    with zipfile.ZipFile(path) as content:
        names = set(content.namelist())
        serving = yaml.safe_load(content.read("model-config.yaml"))
        cases = golden.parse(content.read(golden.FILE)) if golden.FILE in names else []
        files = _files(content, read_json(path, RECORD)["sha256"])
    bill = read_json(path, sbom.FILE) if sbom.FILE in names else {}
    provenance = model.pop("provenance")
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        **model,
        "precision": bundle.told_precision(model["precision"], model.get("foreign")),
        "golden": [{"picture": case.picture, "answer": case.answer} for case in cases],
        "report": read_json(path, "parity.json"),
        "serving": serving,
        "licence": provenance.pop("licence", "unknown"),
        "provenance": provenance,
        "packages": {
            part["name"]: part.get("version", "")
            for part in bill.get("components", [])
            if part["type"] == "library"
        },
        "signature": _signature(path, names, keys),
        "files": files,
    }


def problems(found: Mapping[str, Any]) -> list[str]:
    """What is wrong with an archive, in lines: files that are not as built, a bad signature."""
    lines = [f"{file['name']}: {file['state']}" for file in found["files"]]
    wrong = [line for line in lines if not line.endswith(AS_BUILT)]
    return wrong + ([found["signature"]["problem"]] if found["signature"]["problem"] else [])


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """What changed from one archive to another; every part is empty where nothing did.

    ``values`` are pairs by dotted key (None: not there), ``labels`` those removed, added or moved
    to another place, ``code`` the files of ``handlers/`` and ``files`` the others, by what became
    of them.
    """
    values = [dict(_flat(_compared(found))) for found in (first, second)]
    keys = sorted(values[0].keys() | values[1].keys())
    pairs = {key: [side.get(key) for side in values] for key in keys}
    names = _changed_files(first["files"], second["files"])
    return {
        "values": {key: pair for key, pair in pairs.items() if pair[0] != pair[1]},
        "labels": _changed_labels(first["labels"], second["labels"]),
        "code": {name: what for name, what in names.items() if name.startswith("handlers/")},
        "files": {name: what for name, what in names.items() if not name.startswith("handlers/")},
    }


def _compared(found: Mapping[str, Any]) -> dict[str, Any]:
    left_out = ("file", "files", "sha256", "bytes", "labels", "golden")
    kept = {key: value for key, value in found.items() if key not in left_out}
    # That is of the building alone, and earlier archives have none.
    report = {key: value for key, value in kept["report"].items() if key != "exported"}
    return {**kept, "report": report}


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _flat(part, f"{key}.{name}" if key else name)
    elif value != {}:
        yield key, value


def _changed_labels(first: list[str], second: list[str]) -> dict[str, list[str]]:
    moved = [
        label for label in first if label in second and first.index(label) != second.index(label)
    ]
    changes = {
        "removed": [label for label in first if label not in second],
        "added": [label for label in second if label not in first],
        "moved": moved,
    }
    return {what: labels for what, labels in changes.items() if labels}


def _changed_files(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    sides = [
        {file["name"]: file["sha256"] for file in files if file["state"] != MISSING}
        for files in (first, second)
    ]
    changes = {}
    for name in sorted(sides[0].keys() | sides[1].keys()):
        old, new = (side.get(name) for side in sides)
        if old != new and name not in _DERIVED:
            changes[name] = "added" if old is None else "removed" if new is None else "changed"
    return changes


def _files(content: zipfile.ZipFile, record: Mapping[str, str]) -> list[dict[str, Any]]:
    found = {}
    for entry in content.infolist():
        try:
            with content.open(entry) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        except zipfile.BadZipFile as error:
            raise ArchiveError(f"{content.filename} is damaged: {error}") from error
        if entry.filename in (RECORD, SIGNATURE):
            state = AS_BUILT
        elif entry.filename in record:
            state = AS_BUILT if record[entry.filename] == digest else CHANGED
        else:
            state = ADDED
        found[entry.filename] = (entry.file_size, digest, state)
    found |= dict.fromkeys(record.keys() - found.keys(), (0, "", MISSING))
    return [
        {"name": name, "bytes": size, "sha256": digest, "state": state}
        for name, (size, digest, state) in sorted(found.items())
    ]


def _signature(path: Path, names: set[str], keys: Sequence[Path]) -> dict[str, Any]:
    """``signed``, ``by`` which of the keys (None: not known), and the ``problem``, if any."""
    signed = SIGNATURE in names
    if not keys:
        return {"signed": signed, "by": None, "problem": None}
    try:
        return {"signed": signed, "by": signing.check(path, keys).name, "problem": None}
    except (SignatureError, IntegrityError) as error:
        return {"signed": signed, "by": None, "problem": str(error)}
