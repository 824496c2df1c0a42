"""Malformed pictures by the thousand, the same ones in every run."""

from __future__ import annotations

import itertools
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Case:
    """One request: what was done to it, its body and its headers.

    ``refused`` tells that it must not be answered with 200; damage may leave a picture whole.
    """

    name: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    refused: bool = False


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The file of a picture."""
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def originals() -> dict[str, bytes]:
    """Small files of every format, by what decodes them; the first of each is the smallest."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.linear_gradient("L").resize((12, 10)).convert("RGB")
    frames = [picture.rotate(180)]
    return {
        "jpeg": saved(picture.convert("L"), "JPEG", optimize=True),
        "jpeg-exif": saved(picture, "JPEG", exif=exif, comment=b"hello"),
        "jpeg-progressive": saved(picture, "JPEG", progressive=True),
        "jpeg-cmyk": saved(picture.convert("CMYK"), "JPEG"),
        "png": saved(picture, "PNG"),
        "png-palette": saved(picture.quantize(8), "PNG", transparency=b"\1\2", exif=exif),
        "png-frames": saved(picture, "PNG", save_all=True, append_images=frames),
        "webp": saved(picture, "WEBP"),
        "webp-lossless": saved(picture.convert("RGBA"), "WEBP", lossless=True, exif=exif),
        "webp-frames": saved(picture, "WEBP", save_all=True, append_images=frames),
        "gif": saved(picture.quantize(4), "GIF"),
        "gif-frames": saved(picture.quantize(8), "GIF", save_all=True, append_images=frames),
        "bmp": saved(picture, "BMP"),
        "bmp-palette": saved(picture.quantize(16), "BMP"),
        "tiff": saved(picture, "TIFF"),
        "tiff-deflate": saved(picture.convert("RGBA"), "TIFF", compression="tiff_deflate"),
        "tiff-lzw": saved(picture.quantize(8), "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": saved(picture, "TIFF", compression="jpeg"),
        "tiff-fax": saved(picture.convert("1"), "TIFF", compression="group4"),
    }


def truncated() -> Iterator[Case]:
    """A small file of each format, cut at every offset."""
    files = originals()
    for kind in ("jpeg", "png", "webp", "gif", "bmp", "tiff"):
        for end in range(len(files[kind])):
            yield Case(f"{kind} cut at {end}", files[kind][:end], refused=end < 24)


def _flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _run(data: bytearray, chance: random.Random) -> None:
    at, length = chance.randrange(len(data)), chance.randint(1, 24)
    data[at : at + length] = chance.choice((b"\0", b"\xff", chance.randbytes(1))) * length


def _remove(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.randint(1, 64)]


def _double(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    chunk = data[at : at + chance.randint(1, 64)]
    data[at:at] = chunk * chance.choice((1, 2, 100))


def _length(data: bytearray, chance: random.Random) -> None:
    """A number of 2 or 4 bytes becomes an extreme one, wherever it is."""
    code = chance.choice(("<H", ">H", "<I", ">I"))
    width = struct.calcsize(code)
    top = 1 << 8 * width
    at = chance.randrange(max(1, len(data) - width))
    old = int.from_bytes(data[at : at + width], "little" if code[0] == "<" else "big")
    value = chance.choice((0, 1, top - 1, top // 2, top // 2 - 1, old + 1, old - 1, old * 2))
    data[at : at + width] = struct.pack(code, value % top)


def _noise(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at:] = chance.randbytes(chance.randint(0, 200))


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _run, _remove, _double, _length, _noise,
)  # fmt: skip


def mutated(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    """``data`` after one to three mutations, and their names."""
    changed, names = bytearray(data), []
    for mutate in chance.choices(MUTATIONS, k=chance.randint(1, 3)):
        if changed:
            mutate(changed, chance)
            names.append(mutate.__name__[1:])
    return "+".join(names), bytes(changed)


def damaged(count: int, seed: int = 0) -> Iterator[Case]:
    """``count`` mutations of the originals, by turns."""
    chance = random.Random(seed)
    for number, (kind, data) in zip(range(count), itertools.cycle(originals().items())):
        how, body = mutated(data, chance)
        yield Case(f"{kind} {how} #{number}", body)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def polyglots() -> Iterator[Case]:
    """Two kinds of file in one: what the first bytes say is what it is taken for."""
    files, archive = originals(), BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("evil.py", "raise SystemExit")
    tails = {
        "zip": archive.getvalue(),
        "html": b"<html><script>alert(1)</script>",
        "pickle": b"cos\nsystem\n(S'true'\ntR.",
        "pdf": b"%PDF-1.7\n1 0 obj",
        "php": b"<?php system('true'); ?>",
    }
    for (kind, data), (what, tail) in itertools.product(files.items(), tails.items()):
        yield Case(f"{kind} then {what}", data + tail)
        yield Case(f"{what} then {kind}", tail + data, refused=True)
    for (kind, data), (other, more) in itertools.product(files.items(), files.items()):
        if kind.split("-")[0] != other.split("-")[0]:
            yield Case(f"{kind} with the body of {other}", data[:12] + more[12:])
