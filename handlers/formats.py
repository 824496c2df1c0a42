"""What the first bytes of a body, or the name of a file, say it is, and the parts of a picture file
that make its pixels.

Signatures and layouts: ITU T.81 annex B (JPEG), W3C PNG 5, RFC 9649 (WebP), Exif 2.32 (4.5 to 4.6).
"""

from __future__ import annotations

import re
import struct
from pathlib import PurePath

from handlers.errors import BrokenPicture

FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF")
# In small letters, what the names of their files end in.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

# What has more of them, here and in Pillow, costs seconds of Python: encoders write a few thousand.
MAX_BLOCKS = 100_000

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    *((magic, "TIFF") for magic in _TIFF),
)

# Of a JPEG, those that a length follows, and the end.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")

_BRANDS = {b"avif": "an AVIF picture", b"avis": "an AVIF picture", b"qt  ": "a QuickTime video"}
_BRANDS |= dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1"), "a HEIC picture")
_OTHERS = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"\0\0\x01\0", "a Windows icon"),
    (b"8BPS", "a Photoshop document"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"RIFF", "a RIFF file that is not WebP"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"data:", "a data: URL"),
    (b"/9j/", "JPEG in base64"),
    (b"iVBORw0", "PNG in base64"),
)
_TEXTS = (
    (b"<svg", "an SVG drawing"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "XML"),
    (b"{", "JSON"),
    (b"[", "JSON"),
)


def is_picture(path: PurePath) -> bool:
    """Whether a file is a picture of ``FORMATS`` by its name alone."""
    return path.suffix.lower() in SUFFIXES


def sniff(data: bytes) -> str | None:
    """The one of ``FORMATS`` whose signature ``data`` begins with; None: none of them."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return next((name for magic, name in _PICTURES if data.startswith(magic)), None)


def describe(data: bytes) -> str:
    """What a body that is no supported picture seems to be: ``a PDF document``, ``text "hi"``."""
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "an MP4 video")
    if (found := next((what for magic, what in _OTHERS if data.startswith(magic)), None)) is None:
        found = _describe_text(data[:512])
    return found or f"of no known kind (it begins with {data[:8].hex(' ')})"


def _describe_text(head: bytes) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"<?xml") and b"<svg" in start:
        return "an SVG drawing"
    if found := next((what for magic, what in _TEXTS if start.startswith(magic)), None):
        return found
    text = head[:40].decode("utf-8", "ignore")
    readable = len(text.encode()) > len(head[:40]) - 4 and all(
        character.isprintable() or character.isspace() for character in text
    )
    return f'text "{" ".join(text[:20].split())}"' if readable and text.strip() else None


def trim_jpeg(data: bytes) -> tuple[bytes, bytes, int]:
    """``data`` without comments, profiles and previews; its EXIF block; how many scans it has.

    What follows the first start-of-scan marker is kept as it is. The EXIF block is empty where
    there is none. Raises BrokenPicture for more than ``MAX_BLOCKS`` segments.
    """
    parts: list[bytes | memoryview] = [data[:2]]
    exif, at, blocks = b"", 2, 0
    while (at := data.find(b"\xff", at)) >= 0 and (marker := data[at + 1 : at + 2]) != b"\xda":
        blocks += 1
        _check_blocks("JPEG", blocks)
        if marker in (b"\x00", b"\x01", b"\xd8", b"\xff") or b"\xd0" <= marker <= b"\xd7":
            at += 1 if marker == b"\xff" else 2
            continue
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at : at + 2 + size]
        if marker == b"\xe1" and not exif and segment[4:10] == b"Exif\0\0":
            exif = segment[10:]
        # JFIF and Adobe say how the colours are coded; every other APPn and COM is about something
        # else, and Pillow gathers some of them in quadratic time.
        elif not (b"\xe1" <= marker <= b"\xef" or marker == b"\xfe") or marker == b"\xee":
            parts.append(segment)
        at += 2 + size
    if at >= 0:
        # A view: a photograph's scan is megabytes, which joining copies anyway.
        parts.append(memoryview(data)[at:])
    return b"".join(parts), exif, _scans(data, at) if at >= 0 else 0


def _scans(data: bytes, at: int) -> int:
    """How many scans a JPEG has from its first start-of-scan marker to its end.

    Phones append videos to it, in which every bit pattern occurs.
    """
    scans = blocks = 0
    while (found := _MARKER.search(data, at)) and found[0] != b"\xff\xd9":
        scans += found[0] == b"\xff\xda"
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        blocks += 1
        _check_blocks("JPEG", blocks)
    return scans


def trim_png(data: bytes) -> tuple[bytes, bytes]:
    """``data`` with only the chunks that make pixels, and its EXIF block (empty: none).

    Compressed texts and profiles, which can grow a thousandfold, are gone unread, and so are the
    later frames of an animation. Raises BrokenPicture for more than ``MAX_BLOCKS`` chunks.
    """
    parts, exif, at, kind, blocks = [data[:8]], b"", 8, b"", 0
    while at < len(data) and kind != b"IEND":
        blocks += 1
        _check_blocks("PNG", blocks)
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            parts.append(data[at:end])
        elif kind == b"eXIf":
            exif = data[at + 8 : end - 4]
        at = end
    return b"".join(parts), exif


def check_gif(data: bytes) -> None:
    """Raise BrokenPicture where more than ``MAX_BLOCKS`` blocks precede the first frame."""
    at, blocks = 13, 0
    if len(data) > at and data[10] & 0x80:
        at += 6 << (data[10] & 7)
    while at < len(data) and data[at] not in b",;":
        if data[at] == 0x21:
            at += 2
            while at < len(data) and data[at]:
                at += 1 + data[at]
                blocks += 1
                _check_blocks("GIF", blocks)
        at += 1
        blocks += 1
        _check_blocks("GIF", blocks)


def _check_blocks(kind: str, blocks: int) -> None:
    if blocks > MAX_BLOCKS:
        raise BrokenPicture(
            f"this {kind} picture has more than {MAX_BLOCKS} blocks before its pixels: save it anew"
        )


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that the header of a WebP file declares; None: it declares none."""
    kind = data[12:16]
    if len(data) < (25 if kind == b"VP8L" else 30):
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def exif_orientation(exif: bytes) -> int:
    """Orientation 1 to 8 of an EXIF block; 1 where it says none, or nothing readable."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = ">" if exif[:2] == b"MM" else "<"
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, _kind, _count, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == 0x0112:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
