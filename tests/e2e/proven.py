"""Archives that can be rolled out: with a record, golden requests and answers to tell them by.

Every answer names its version and the digest of what was asked, so that a client can tell who
answered, and whether it was answered what it asked. They travel with the real ``handlers.hold``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tiny import PROJECT, pack

from benchmarks import asking as clients
from handlers.bundle import Bundle
from handlers.inputs import ImageInput
from handlers.integrity import RECORD

SOURCE = """
import hashlib, json, os, time

VERSION, FAULT, SECONDS = {version!r}, {fault!r}, {seconds!r}
asked = 0

def handle(rows, context):
    global asked
    if rows is None:
        if FAULT == "refuses":
            raise RuntimeError("not today")
        return None
    answers = []
    for index, row in enumerate(rows):
        context.set_response_content_type(index, "application/json")
        if context.get_request_header(index, "describe") == "True":
            answers.append(describe())
            continue
        body = bytes(row.get("data") or row.get("body"))
        if body.startswith(b"<html"):
            context.set_response_status(415, "Unsupported Media Type", index)
            answers.append(b'{{"code":415,"type":"UnsupportedPicture","message":"no picture"}}')
            continue
        if context.get_request_header(index, "accept") == "image/png":
            context.set_response_content_type(index, "image/png")
            answers.append(b"\\x89PNG" + VERSION.encode())
            continue
        time.sleep(SECONDS)
        asked += 1
        if FAULT == "fails later" and asked > 20:
            raise ValueError("it fails later")
        name = "wrong" if FAULT == "wrong" else VERSION
        digest = hashlib.md5(body).hexdigest()
        answers.append(json.dumps(
            [{{"label": name, "score": 0.75}}, {{"label": digest, "score": 0.25}}]
        ).encode())
    return answers

def describe():
    if FAULT == "built before":
        return b"{{}}"
    from handlers import hold
    hold.wait_if_asked()
    return json.dumps({{"worker": os.getpid()}}).encode()
"""
_GOLDEN = b"\x89PNG golden"


def answer(version: str, body: bytes) -> list[dict[str, object]]:
    """What a version answers, rightly."""
    digest = hashlib.md5(body).hexdigest()
    return [{"label": version, "score": 0.75}, {"label": digest, "score": 0.25}]


def judge(body: bytes, found: Any) -> tuple[str, bool]:
    """Which version has answered, and whether rightly."""
    version = found[0]["label"]
    return version, found == answer(version, body)


# Clients of these archives, which ask and count.
asking = functools.partial(clients.asking, judge=judge)


def pack_proven(
    store: Path, version: str, fault: str = "", seconds: float = 0.002, name: str = "m"
) -> Path:
    """Write an archive; ``seconds`` are what a request takes, ``fault`` is one of SOURCE's."""
    labels = [version, "wrong"]
    picture = ImageInput(resize=[8, 8])
    bundle = Bundle(name, version, "image-classification", "eager", "none", labels, picture)
    case = {"picture": "golden/0.png", "answer": answer(version, _GOLDEN), "tolerance": 0.01}
    extra: dict[str, str | bytes] = {
        "marsmith.json": json.dumps(asdict(bundle)),
        "golden/requests.json": json.dumps([case]),
        "golden/0.png": _GOLDEN,
        "handlers/__init__.py": "",
        "handlers/hold.py": (PROJECT / "handlers" / "hold.py").read_text(),
    }
    source = SOURCE.format(version=version, fault=fault, seconds=seconds)
    path = store / pack(store, name, version, source, extra)
    with zipfile.ZipFile(path, "a") as archive:
        digests = {
            member: hashlib.sha256(archive.read(member)).hexdigest()
            for member in archive.namelist()
        }
        archive.writestr(RECORD, json.dumps({"sha256": digests}))
    return path
