"""A few bytes that ask for gigabytes or minutes, sent to a real TorchServe."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from flood import Neighbour, flood
from malformed import Case, chunk, originals, saved
from PIL import Image

from handlers.formats import MAX_BLOCKS
from marsmith.server import TorchServe

pytestmark = pytest.mark.usefixtures("survivor")

# The largest that is taken: 49 of 50 million pixels.
SIDE = 7000
# Decoded, eight pictures of SIDE x SIDE are 1.2 GB; the decoders of two at a time take as much.
PEAK = 4 << 30


def _sizes() -> Iterator[Case]:
    """Sizes and lengths that a header declares, up to 4 GB."""
    files = originals()
    whole = struct.pack("<I", 0xFFFFFFFF)
    png, webp, bmp, tiff, gif = (files[kind] for kind in ("png", "webp", "bmp", "tiff", "gif"))
    for at in range(8, 33, 4):
        yield Case(f"PNG 4 GB at {at}", png[:at] + whole + png[at + 4 :])
        yield Case(f"WebP 4 GB at {at - 4}", webp[: at - 4] + whole + webp[at:])
    for at in range(2, 50, 4):
        yield Case(f"BMP 4 GB at {at}", bmp[:at] + whole + bmp[at + 4 :])
    for at in range(4, len(tiff) - 4, 2):
        yield Case(f"TIFF 4 GB at {at}", tiff[:at] + whole + tiff[at + 4 :])
    for at in range(6, 13):
        yield Case(f"GIF 65535 at {at}", gif[:at] + b"\xff\xff" + gif[at + 2 :])


def _costly() -> Iterator[Case]:
    """What would take a decoder seconds or minutes."""
    blank, files = Image.new("L", (SIDE, SIDE)), originals()
    progressive = saved(blank, "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    yield Case("scans", progressive[:-2] + scan * 400 + progressive[-2:], refused=True)
    yield Case("a long side", saved(Image.new("L", (1, 40_000_000)), "PNG"), refused=True)
    png, jpeg, many = files["png"], files["jpeg"], MAX_BLOCKS + 1
    yield Case("chunks", png[:33] + chunk(b"IDAT", b"") * many + png[33:], refused=True)
    yield Case("segments", jpeg[:2] + b"\xff\xdd\0\4\0\0" * many + jpeg[2:], refused=True)
    yield Case("fill bytes", jpeg[:2] + b"\xff" * 30_000_000 + jpeg[2:], refused=True)
    gif = files["gif"][:13] + b"\0" * (3 << (files["gif"][10] & 7) + 1)
    yield Case("extensions", gif + b"!\xfe\1a\0" * many + b";", refused=True)
    rle = struct.pack("<2sIII", b"BM", 0, 0, 54) + struct.pack(
        "<IIIHHIIIIII", 40, SIDE, SIDE, 1, 8, 1, 0, 0, 0, 0, 0
    )
    yield Case("run lengths", rle + b"\1\5" * 8_000_000, refused=True)
    webp = saved(blank.convert("RGB"), "WEBP", lossless=True, method=0, quality=0)
    instances = [{"b64": base64.b64encode(webp).decode()}] * 32
    document = json.dumps({"instances": instances}).encode()
    yield Case("32 large pictures", document, {"content-type": "application/json"}, refused=True)


def test_bombs(one_worker: TorchServe, neighbour: Neighbour) -> None:
    cases = [*_sizes(), *_costly()]
    flood(one_worker.running, cases, neighbour, grpc=1).assert_clean(len(cases))


def _burdened(picture: Image.Image) -> Iterator[Case]:
    """``picture`` with as much besides as the format takes."""
    rgb = picture.convert("RGB")
    png, jpeg = saved(rgb, "PNG"), saved(rgb, "JPEG")
    bulk = zlib.compress(bytes(1_000_000_000), 9)
    for kind in (b"iCCP", b"zTXt", b"iTXt"):
        yield Case(
            f"PNG with a gigabyte of {kind!r}", png[:33] + chunk(kind, b"n\0\0" + bulk) + png[33:]
        )
    yield Case(
        "PNG with 20 MB of EXIF", png[:33] + chunk(b"eXIf", b"II*\0" + bytes(20 << 20)) + png[33:]
    )
    yield Case("PNG with a gigabyte of pixels more", png[:-12] + chunk(b"IDAT", bulk) + png[-12:])
    for marker, content in (
        (0xE1, b"Exif\0\0II*\0"),
        (0xE2, b"ICC_PROFILE\0\1\1"),
        (0xFE, b"hello"),
    ):
        segment = struct.pack(">BBH", 255, marker, 60_002) + content.ljust(60_000, b"\0")
        yield Case(f"JPEG with 500 of {marker:x}", jpeg[:2] + segment * 500 + jpeg[2:])
    frames = [rgb.point(lambda value, n=n: value ^ n) for n in range(1, 200)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        yield Case(f"{kind} of 200 frames", saved(rgb, kind, save_all=True, append_images=frames))


def test_what_a_picture_carries_besides_changes_nothing(
    one_worker: TorchServe, neighbour: Neighbour
) -> None:
    cases = list(_burdened(Image.open(io.BytesIO(neighbour.picture)).resize((64, 64))))
    seen = flood(one_worker.running, cases, neighbour, rest=3, grpc=1)
    seen.assert_clean(len(cases))
    assert seen.statuses == {200: len(cases)}


def test_an_answer_larger_than_torchserve_takes_fails_alone(
    one_worker: TorchServe, neighbour: Neighbour
) -> None:
    """TorchServe ends a worker that sends it one: 14 megapixels drawn as PNG were enough."""
    side = 3700
    noise = Image.frombytes("RGB", (side, side), random.Random(0).randbytes(3 * side * side))
    jpeg = saved(noise, "JPEG", quality=30)
    cases = [Case("drawn as PNG", jpeg, {"accept": "image/png"}, refused=True)]
    seen = flood(one_worker.running, cases * 2, neighbour, grpc=0)
    seen.assert_clean(2)
    assert seen.statuses == {413: 2}


def test_a_batch_of_the_largest_pictures_is_answered(
    one_worker: TorchServe, neighbour: Neighbour, survivor: psutil.Process
) -> None:
    """Each is 34 bytes long."""
    webp = saved(Image.new("RGB", (SIDE, SIDE)), "WEBP", lossless=True, method=0, quality=0)
    assert len(webp) < 100
    cases = [Case("large", webp)] * 8
    kept = []
    for _ in range(4):
        seen = flood(one_worker.running, cases, neighbour, rest=8, grpc=0)
        seen.assert_clean(8)
        assert seen.statuses == {200: 8}
        kept.append(survivor.memory_info().rss)
    # One of them may have had the threads side by side; four would be 4.7 GB if they stayed.
    assert kept[3] < kept[0] + (1 << 30)
    status = Path(f"/proc/{survivor.pid}/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    print("peak", int(peak) >> 10, "MB")
    assert int(peak) << 10 < PEAK
