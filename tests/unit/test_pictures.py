"""Pictures of every kind come out right, and no bytes at all raise anything but our errors."""

from __future__ import annotations

import struct
import threading
import time
import warnings
import zlib
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from handlers import jpeg, pictures
from handlers.errors import BrokenPicture, TooLarge, UnsupportedPicture
from handlers.formats import MAX_BLOCKS
from handlers.pictures import MAX_RLE_BYTES, MAX_SCANS, decode, describe_accepted, read, read_all

LIMIT = 1 << 20
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def colourful(width: int = 9, height: int = 7) -> Image.Image:
    """Smooth enough for JPEG, and no two corners alike."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 250 * x // max(width - 1, 1), 250 * y // max(height - 1, 1)
    return Image.fromarray(np.stack([red, green, 120 + 0 * x], axis=2).astype(np.uint8))


def pixel(data: bytes) -> tuple[int, ...]:
    picture = decode(data, LIMIT)
    assert type(picture) is Image.Image
    assert picture.mode == "RGB"
    value = picture.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


def png_chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """``png`` with a chunk more, just after its header."""
    return png[:33] + png_chunk(kind, content) + png[33:]


def with_segment(jpeg: bytes, marker: int, content: bytes, times: int = 1) -> bytes:
    """``jpeg`` with a segment more, ``times`` times, just after its first marker."""
    segment = struct.pack(">BBH", 255, marker, len(content) + 2) + content
    return jpeg[:2] + segment * times + jpeg[2:]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (9, 7), (64, 48)])
def test_every_format_gives_its_pixels(kind: str, size: tuple[int, int]) -> None:
    original = colourful(*size)
    picture = decode(saved(original, kind), LIMIT)
    assert (type(picture), picture.mode, picture.size) == (Image.Image, "RGB", size)
    difference = np.abs(np.asarray(picture, int) - np.asarray(original, int))
    # GIF has a palette of 256; JPEG and WebP are lossy, most of all in colour at their edges.
    assert difference.mean() <= {"JPEG": 12, "WEBP": 12, "GIF": 20}.get(kind, 0)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer(kind: Any) -> None:
    assert decode(kind(saved(colourful(), "PNG")), LIMIT).size == (9, 7)


GREY, CLEAR = (100, 100, 100), (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("picture", "kind", "options", "expected"),
    [
        (Image.new("L", (3, 2), 100), "PNG", {}, GREY),
        (Image.new("L", (3, 2), 100), "JPEG", {}, GREY),
        (Image.new("L", (3, 2), 100), "BMP", {}, GREY),
        (Image.new("L", (3, 2), 100), "GIF", {}, GREY),
        (Image.new("L", (3, 2), 100), "TIFF", {"compression": "tiff_lzw"}, GREY),
        (Image.new("1", (3, 2), 1), "PNG", {}, (255, 255, 255)),
        (Image.new("1", (3, 2), 1), "PNG", {"transparency": 0}, (255, 255, 255)),
        (Image.new("1", (3, 2), 0), "PNG", {"transparency": 0}, (255, 255, 255)),
        (Image.new("1", (3, 2), 0), "TIFF", {"compression": "group4"}, (0, 0, 0)),
        (Image.new("1", (3, 2), 0), "BMP", {}, (0, 0, 0)),
        (Image.new("RGB", (3, 2), (9, 8, 7)).quantize(4), "PNG", {}, (9, 8, 7)),
        (Image.new("RGB", (3, 2), (9, 8, 7)).quantize(4), "GIF", {}, (9, 8, 7)),
        (Image.new("RGB", (3, 2), (9, 8, 7)).quantize(4), "TIFF", {}, (9, 8, 7)),
        (Image.new("RGB", (3, 2), (9, 8, 7)).quantize(4), "BMP", {}, (9, 8, 7)),
        (Image.new("P", (3, 2), 0), "PNG", {"transparency": 0}, (255, 255, 255)),
        (Image.new("P", (3, 2), 0), "PNG", {"transparency": b"\x80"}, (127, 127, 127)),
        (Image.new("P", (3, 2), 0), "GIF", {"transparency": 0}, (255, 255, 255)),
        (Image.new("LA", (3, 2), (0, 128)), "PNG", {}, (127, 127, 127)),
        (Image.new("LA", (3, 2), (0, 128)), "TIFF", {}, (127, 127, 127)),
        (Image.new("PA", (3, 2), (0, 0)), "TIFF", {}, (255, 255, 255)),
        (Image.new("RGBA", (3, 2), CLEAR), "PNG", {}, (255, 255, 255)),
        (Image.new("RGBA", (3, 2), CLEAR), "TIFF", {}, (255, 255, 255)),
        (Image.new("RGBA", (3, 2), CLEAR), "WEBP", {"lossless": True}, (255, 255, 255)),
        (Image.new("RGBA", (3, 2), (255, 0, 0, 51)), "PNG", {}, (255, 204, 204)),
        (Image.new("RGB", (3, 2), (1, 2, 3)), "PNG", {"transparency": (1, 2, 3)}, (255, 255, 255)),
        (Image.new("I;16", (3, 2), 100 << 8 | 255), "PNG", {}, GREY),
        (Image.new("I;16", (3, 2), 65535), "PNG", {}, (255, 255, 255)),
        (Image.new("I;16", (3, 2), 7), "PNG", {"transparency": 7}, (255, 255, 255)),
        (Image.new("I;16", (3, 2), 100 << 8 | 255), "TIFF", {}, GREY),
        (Image.new("I;16", (3, 2), 100 << 8), "TIFF", {"compression": "tiff_lzw"}, GREY),
        (Image.new("I;16B", (3, 2), 100 << 8 | 255), "TIFF", {}, GREY),
        (Image.new("I", (3, 2), 100 << 8), "TIFF", {}, GREY),
        (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "TIFF", {}, (255, 0, 0)),
        (Image.new("CMYK", (16, 16), (0, 0, 0, 255)), "JPEG", {}, (0, 0, 0)),
        (Image.new("YCbCr", (4, 2), (100, 128, 128)), "TIFF", {}, GREY),
        (Image.new("RGB", (16, 16), GREY), "TIFF", {"compression": "jpeg"}, GREY),
        (Image.new("RGB", (3, 2), (9, 8, 7)), "TIFF", {"compression": "tiff_deflate"}, (9, 8, 7)),
        (Image.new("RGB", (3, 2), (9, 8, 7)), "TIFF", {"big_tiff": True}, (9, 8, 7)),
        (Image.new("RGB", (16, 16), GREY), "JPEG", {"progressive": True}, GREY),
    ],
)
def test_every_mode(
    picture: Image.Image, kind: str, options: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert pixel(saved(picture, kind, **options)) == expected


def test_colour_spaces() -> None:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    lab = transform.apply(Image.new("RGB", (3, 2), (200, 40, 90)))
    assert lab is not None
    assert np.abs(np.array(pixel(saved(lab, "TIFF"))) - (200, 40, 90)).max() <= 4
    # Adobe writes CMYK inverted, and Pillow's own encoder does as Adobe does.
    red = np.array(pixel(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")))
    assert np.abs(red - (255, 0, 0)).max() <= 4


def png_pixel(depth: int, colour: int, content: bytes, key: bytes = b"") -> bytes:
    """A PNG of one pixel, of which ``key`` is the colour that is clear."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, depth, colour, 0, 0, 0))
    clear = png_chunk(b"tRNS", key) if key else b""
    idat = png_chunk(b"IDAT", zlib.compress(b"\0" + content))
    return b"\x89PNG\r\n\x1a\n" + header + clear + idat + png_chunk(b"IEND", b"")


def test_sixteen_bit_colour_keeps_black_and_white() -> None:
    assert pixel(png_pixel(16, 2, struct.pack(">3H", 0, 32768, 65535))) == (0, 128, 255)


@pytest.mark.parametrize(
    ("samples", "key", "expected"),
    [
        ((0x8000,) * 3, (0x8000,) * 3, (255, 255, 255)),
        ((0x1234, 0, 0), (0x1234, 0, 0), (255, 255, 255)),
        ((0x3400, 0, 0), (0x1234, 0, 0), (0x34, 0, 0)),
        ((0, 0, 0), (0x1200, 0, 0), (0, 0, 0)),
    ],
)
def test_sixteen_bit_colour_that_is_clear(
    samples: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert pixel(png_pixel(16, 2, struct.pack(">3H", *samples), struct.pack(">3H", *key))) == (
        expected
    )


@pytest.mark.parametrize(
    ("depth", "sample", "key", "expected"),
    [
        (1, 0, 0, 255),
        (1, 0, 1, 0),
        (2, 1, 1, 255),
        (2, 2, 1, 170),
        (2, 1, 85, 255),  # only the bits that a sample has are looked at (PNG, 11.3.1.1)
        (4, 8, 8, 255),
        (4, 1, 8, 17),
        (4, 8, 136, 255),
        (8, 100, 100, 255),
        (8, 101, 100, 101),
    ],
)
def test_grey_of_few_bits_that_is_clear(depth: int, sample: int, key: int, expected: int) -> None:
    data = png_pixel(depth, 0, bytes([sample << (8 - depth)]), struct.pack(">H", key))
    assert pixel(data) == (expected,) * 3


def tiff(tags: dict[int, tuple[int, int]], samples: bytes) -> bytes:
    """A little-endian TIFF, 2x1, of one strip."""
    tags = {256: (4, 2), 257: (4, 1), 258: (3, 16), 259: (3, 1), 277: (3, 1), 279: (4, 4), **tags}
    tags[273] = (4, 8)
    entries = [struct.pack("<HHII", tag, kind, 1, v) for tag, (kind, v) in sorted(tags.items())]
    header = struct.pack("<2sHI", b"II", 42, 8 + len(samples))
    return header + samples + struct.pack("<H", len(tags)) + b"".join(entries) + b"\0\0\0\0"


def test_rare_grey_tiffs() -> None:
    black_is_zero, white_is_zero = {262: (3, 1)}, {262: (3, 0)}
    assert pixel(tiff(black_is_zero, struct.pack("<HH", 100 << 8, 0))) == GREY
    assert pixel(tiff(white_is_zero, struct.pack("<HH", (255 - 100) << 8, 0))) == GREY
    assert pixel(tiff({**black_is_zero, 258: (3, 12)}, b"\x64\x00\x00\x00")) == GREY


@pytest.mark.parametrize("sample", [-1, 65536])
def test_integers_without_an_agreed_white(sample: int) -> None:
    with pytest.raises(UnsupportedPicture, match=r"outside 0\.\.65535"):
        decode(saved(Image.new("I", (3, 2), sample), "TIFF"), LIMIT)


def test_floats_are_refused() -> None:
    with pytest.raises(UnsupportedPicture, match="float samples"):
        decode(saved(Image.new("F", (3, 2), 0.5), "TIFF"), LIMIT)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert pixel(data) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste((255, 0, 0), (0, 0, 16, 8))
    upright.paste((0, 0, 255), (16, 0, 32, 8))
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode(saved(stored, kind, exif=exif), LIMIT)
    assert picture.size == (32, 16)
    corners = [picture.getpixel(at) for at in ((4, 4), (28, 4), (4, 12), (28, 12))]
    expected = [(255, 0, 0), (0, 0, 255), (255, 255, 255), (255, 255, 255)]
    assert np.abs(np.array(corners, int) - expected).max() <= 12


@pytest.mark.parametrize(
    "exif", [b"", b"II", b"nonsense", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_unreadable_exif_counts_as_none(kind: str, exif: bytes) -> None:
    assert decode(saved(colourful(), kind, exif=b"Exif\0\0" + exif), LIMIT).size == (9, 7)


def test_orientation_before_the_damage_counts() -> None:
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0" + struct.pack("<2sHIH", b"II", 42, 8, 9) + entry + b"\xff" * 7
    assert decode(saved(colourful(), "JPEG", exif=exif), LIMIT).size == (7, 9)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "is empty"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\0\0\0\x18ftypheic\0\0", "a HEIC picture"),
        (b"\0\0\0\x18ftypavif\0\0", "an AVIF picture"),
        (b"\0\0\0\x18ftypmp42\0\0", "an MP4 video"),
        (b'<?xml version="1.0"?>\n<svg>', "an SVG drawing"),
        (b"\xef\xbb\xbf <svg xmlns=''>", "an SVG drawing"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b'{"instances": []}', "JSON"),
        (b"hello\nthere", 'text "hello there"'),
        ("приветствие".encode() * 5, 'text "приветствие'),
        (b"\x80\x81\xfe\xff", "begins with 80 81 fe ff"),
        (b"\xfe\xff", "begins with fe ff"),
        (b"RIFF\0\0\0\0AVI LIST", "a RIFF file that is not WebP"),
        (b"data:image/png;base64,iVBO", "a data: URL"),
        (b"/9j/4AAQ", "JPEG in base64"),
    ],
)
def test_other_bodies_are_named(body: bytes, what: str) -> None:
    with pytest.raises(UnsupportedPicture) as caught:
        decode(body, LIMIT)
    assert what in str(caught.value)
    assert describe_accepted() in str(caught.value)
    assert b'"accepted":["JPEG"' in caught.value.body()


def test_other_pillow_formats_stay_closed() -> None:
    for kind in ("ICO", "PPM", "TGA", "PCX", "JPEG2000", "ICNS", "EPS"):
        with pytest.raises(UnsupportedPicture):
            decode(saved(colourful(32, 32), kind), LIMIT)


@pytest.mark.parametrize("kind", FORMATS)
def test_limit_is_on_pixels(kind: str) -> None:
    data = saved(colourful(), kind)
    assert decode(data, 63).size == (9, 7)
    with pytest.raises(TooLarge, match="9x7, 63 pixels; the limit is 62") as caught:
        decode(data, 62)
    assert caught.value.details == {"width": 9, "height": 7, "max_pixels": 62}


def bombs() -> dict[str, bytes]:
    side = 65535
    gif = bytearray(saved(colourful(), "GIF"))
    bmp = bytearray(saved(colourful(), "BMP"))
    jpeg = bytearray(saved(colourful(), "JPEG"))
    gif[6:10] = struct.pack("<HH", side, side)
    bmp[18:26] = struct.pack("<II", side, side)
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    canvas = (side - 1).to_bytes(3, "little") * 2
    webp = bytearray(saved(Image.new("RGBA", (9, 7)), "WEBP", exif=b"Exif\0\0II"))
    webp[24:30] = canvas
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")
    huge = tiff({256: (4, side), 257: (4, side), 262: (3, 1)}, b"\0\0\0\0")
    files = {"GIF": gif, "BMP": bmp, "JPEG": jpeg, "WEBP": webp, "PNG": png, "TIFF": huge}
    return {kind: bytes(file) for kind, file in files.items()}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("limit", [LIMIT, 100_000_000])
def test_bombs_are_refused_by_their_header(kind: str, limit: int) -> None:
    with pytest.raises(TooLarge, match="65535x65535"):
        decode(bombs()[kind], limit)


def test_pillows_own_limit_is_neither_a_warning_nor_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    for kind in FORMATS:
        assert decode(saved(colourful(), kind), 63).size == (9, 7)


def test_small_webp_header_counts() -> None:
    """16383x16383 pixels of one colour fit in 38 bytes."""
    data = saved(Image.new("RGB", (9, 7)), "WEBP", lossless=True)
    bits = struct.pack("<I", 16382 | 16382 << 14)
    with pytest.raises(TooLarge, match="16383x16383"):
        decode(data[:21] + bits + data[25:], LIMIT)


def test_bulky_metadata_costs_nothing() -> None:
    bulk = zlib.compress(bytes(50_000_000), 9)
    png, jpeg = saved(colourful(), "PNG"), saved(colourful(), "JPEG")
    started = time.process_time()
    assert pixel(with_chunk(png, b"iCCP", b"name\0\0" + bulk)) == pixel(png)
    assert pixel(with_chunk(png, b"zTXt", b"name\0\0" + bulk)) == pixel(png)
    assert pixel(with_segment(jpeg, 0xE1, b"Exif\0\0" + b"x" * 10, 50_000)) == pixel(jpeg)
    assert pixel(with_segment(jpeg, 0xE2, b"ICC_PROFILE\0\1\1" + bytes(60000))) == pixel(jpeg)
    assert time.process_time() - started < 2


def test_a_jpeg_of_too_many_scans() -> None:
    data = saved(colourful(), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(BrokenPicture, match=f"at most {MAX_SCANS}"):
        decode(data[:-2] + scan * MAX_SCANS + data[-2:], LIMIT)


def test_scans_are_counted_by_the_pixels_that_each_goes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = saved(colourful(90, 70), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    more = data[:-2] + scan * 40 + data[-2:]
    assert decode(more, 3 * 90 * 70).size == (90, 70)
    for ask in (decode, partial(read, wanted=lambda size: (9, 7))):
        with pytest.raises(BrokenPicture, match="of 90x70 has 50 scans, at most 20 are read"):
            ask(more, 90 * 70)
        assert ask(data[:-2] + scan * 10 + data[-2:], 90 * 70).size == (90, 70)
    # Before the time is taken that so many would cost.
    monkeypatch.setattr(jpeg, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BrokenPicture, match="has 50 scans"):
        read(more, 90 * 70, lambda size: (9, 7))


def test_what_follows_a_jpeg_counts_for_nothing() -> None:
    data = saved(colourful(), "JPEG")
    assert pixel(data + b"\xff\xda\0\2" * 1000) == pixel(data)


def too_many_blocks() -> dict[str, bytes]:
    png, gif, jpeg = (saved(colourful(), kind) for kind in ("PNG", "GIF", "JPEG"))
    # Its first comma may be a colour
    at = gif.index(b"," + bytes(4) + struct.pack("<HH", 9, 7))
    more, scan = MAX_BLOCKS + 1, jpeg.index(b"\xff\xda")
    return {
        "PNG of empty chunks": png[:33] + png_chunk(b"IDAT", b"") * more + png[33:],
        "GIF of comments": gif[:at] + b"!\xfe\1a\0" * more + gif[at:],
        "GIF of one long comment": gif[:at] + b"!\xfe" + b"\1a" * more + b"\0" + gif[at:],
        "GIF of nothing": gif[:at] + bytes(more) + gif[at:],
        "JPEG of fill bytes": jpeg[:2] + b"\xff" * more + jpeg[2:],
        "JPEG of empty segments": jpeg[:2] + b"\xff\xe1\0\2" * more + jpeg[2:],
        "JPEG of segments after the pixels": jpeg[:-2] + b"\xff\xdd\0\4\0\0" * more + jpeg[-2:],
        "JPEG of restart intervals": jpeg[:scan] + b"\xff\xdd\0\4\0\0" * more + jpeg[scan:],
    }


@pytest.mark.parametrize("name", too_many_blocks())
def test_a_picture_of_too_many_blocks(name: str) -> None:
    data = too_many_blocks()[name]
    with pytest.raises(BrokenPicture, match=f"more than {MAX_BLOCKS} blocks"):
        read(data, LIMIT, lambda size: (9, 7))


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536)])
def test_a_picture_of_too_long_a_side(size: tuple[int, int]) -> None:
    data = saved(Image.new("L", size), "PNG")
    with pytest.raises(TooLarge, match=f"{size[0]}x{size[1]}; the limit of a side is 65535"):
        decode(data, LIMIT)
    longest = min(size[0], 65_535), min(size[1], 65_535)
    assert decode(saved(Image.new("L", longest), "PNG"), LIMIT).size == longest


def test_run_lengths_of_bmp_are_read_up_to_a_limit() -> None:
    head, zeros = SAMPLES["bmp-rle"][:1078], b"\0\0" * (MAX_RLE_BYTES // 2)
    with pytest.raises(TooLarge, match="a run-length encoded BMP of 2001092 bytes; at most"):
        decode(head + zeros + SAMPLES["bmp-rle"][1078:], LIMIT)
    # Without run lengths the same number of bytes costs nothing
    assert decode(saved(colourful(900, 800), "BMP"), LIMIT).size == (900, 800)


def test_a_bad_picture_among_several_is_named_by_its_index() -> None:
    good = saved(Image.new("RGB", (9, 7)), "PNG")
    with pytest.raises(UnsupportedPicture, match=r"^instances\[1\]: the body is text") as raised:
        read_all([good, b"hello"], 999, lambda size: size)
    assert raised.value.details["instance"] == 1
    assert "accepted" in raised.value.details
    with pytest.raises(UnsupportedPicture, match="^the body is text"):
        read_all([b"hello"], 999, lambda size: size)


def test_warnings_are_dropped_until_the_last_thread_has_read() -> None:
    before = list(warnings.filters)
    with pictures._quiet:
        inside = list(warnings.filters)
        with pictures._quiet:
            pass
        assert warnings.filters == inside != before
    assert warnings.filters == before


def test_pictures_of_one_request_share_its_pixels() -> None:
    png, photo = saved(colourful(), "PNG"), saved(colourful(1250, 800), "JPEG")
    assert len(read_all([png] * 3, 3 * 63, lambda size: size)) == 3
    with pytest.raises(TooLarge, match="3 of 4 pictures .* have 189 pixels to decode; .* is 188"):
        read_all([png] * 4, 188, lambda size: size)
    # What is decoded smaller counts less
    small = read_all([photo] * 9, 1250 * 800, lambda size: (9, 8))
    assert small[0].size == (1250, 800)
    assert small[0].pixels.size < 1250 * 800


def test_a_read_picture_can_be_had_whole_again() -> None:
    picture = read(SAMPLES["png"], LIMIT, lambda size: size)
    assert np.array_equal(np.asarray(picture.image), picture.pixels)


def samples() -> dict[str, bytes]:
    """Small files that between them use each decoder and each way to store a picture."""
    picture, exif = colourful(), Image.Exif()
    exif[0x0112] = 6
    frames = [picture.transpose(Image.Transpose.ROTATE_180)]
    rle = struct.pack("<2sIII", b"BM", 0, 0, 14 + 40 + 1024) + struct.pack(
        "<IIIHHIIIIII", 40, 4, 2, 1, 8, 1, 0, 0, 0, 256, 0
    )
    return {
        "bmp": saved(picture, "BMP"),
        "bmp-rle": rle + bytes(range(256)) * 4 + b"\4\7\0\0\1\3\0\3\1\2\3\0\0\1",
        "gif": saved(picture.quantize(8), "GIF", transparency=1, comment=b"hello"),
        "gif-frames": saved(picture.quantize(4), "GIF", save_all=True, append_images=frames),
        "jpeg": saved(picture, "JPEG", exif=exif, comment=b"hello", quality=30),
        "jpeg-cmyk": saved(picture.convert("CMYK"), "JPEG"),
        "jpeg-progressive": saved(picture, "JPEG", progressive=True),
        "png": saved(picture, "PNG", exif=exif),
        "png-frames": saved(picture, "PNG", save_all=True, append_images=frames),
        "png-palette": saved(picture.quantize(8), "PNG", transparency=b"\1\2\3"),
        "png-16": saved(Image.new("I;16", (9, 7), 300), "PNG"),
        "tiff": saved(picture, "TIFF", exif=exif),
        "tiff-deflate": saved(picture.convert("RGBA"), "TIFF", compression="tiff_deflate"),
        "tiff-jpeg": saved(picture, "TIFF", compression="jpeg"),
        "tiff-lzw": saved(picture.quantize(8), "TIFF", compression="tiff_lzw"),
        "tiff-fax": saved(picture.convert("1"), "TIFF", compression="group4"),
        "webp": saved(picture, "WEBP", exif=exif),
        "webp-frames": saved(picture, "WEBP", save_all=True, append_images=frames),
        "webp-lossless": saved(picture.convert("RGBA"), "WEBP", lossless=True),
    }


SAMPLES = samples()


def survives(data: bytes) -> bool:
    """Whether ``data`` is a picture; any error but ours passes through and fails the test."""
    try:
        return decode(data, LIMIT).mode == "RGB"
    except (TooLarge, UnsupportedPicture, BrokenPicture) as error:
        if "\n" in str(error):
            raise
        return False


@pytest.mark.parametrize("name", SAMPLES)
def test_cut_off_anywhere(name: str) -> None:
    data = SAMPLES[name]
    assert survives(data)
    pictures = [survives(data[:end]) for end in range(len(data))]
    assert not any(pictures[:24])  # a late cut may cost only a trailer, or a later frame


@pytest.mark.parametrize("name", SAMPLES)
def test_every_header_byte_damaged(name: str) -> None:
    data = SAMPLES[name]
    for at in range(min(len(data), 160)):
        for value in (0x00, 0xFF, data[at] ^ 0x01):
            survives(data[:at] + bytes([value]) + data[at + 1 :])


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_mutations(name: str, choice: st.DataObject) -> None:
    data = bytearray(SAMPLES[name])
    for _ in range(choice.draw(st.integers(1, 6))):
        at = choice.draw(st.integers(0, len(data)))
        cut = choice.draw(st.integers(0, 4))
        data[at : at + cut] = choice.draw(st.binary(max_size=6))
    survives(bytes(data))


@given(st.sampled_from(sorted(SAMPLES)), st.binary(max_size=64))
def test_a_signature_before_noise(name: str, noise: bytes) -> None:
    survives(SAMPLES[name][:16] + noise)


def test_causes_are_chained_and_messages_are_one_line() -> None:
    with pytest.raises(BrokenPicture, match="this PNG picture cannot be read: ") as caught:
        decode(SAMPLES["png"][:60], LIMIT)
    assert caught.value.__cause__ is not None


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    before = list(warnings.filters)
    bodies = [*SAMPLES.values(), saved(colourful(400, 300), "PNG")] * 4
    threads = [threading.Thread(target=survives, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
