"""Bytes of an untrusted client to an upright RGB picture, or to the error that says why not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from handlers import formats, jpeg
from handlers.errors import BrokenPicture, RequestError, TooLarge, UnsupportedPicture, one_line
from handlers.formats import FORMATS
from handlers.quiet import Overlapping

MAX_SCANS = 500  # of a JPEG; encoders write 1 to about 20, and each costs a pass over the pixels
# At max_pixels so many are read, of smaller pictures more: what counts is scans times pixels.
FULL_SCANS = 20
# JPEG and GIF have no longer side. A PNG of 1 x 50 million takes as long as ten of 7000 x 7000.
MAX_SIDE = 65_535
# Pillow reads these in Python, half a second for a million bytes.
MAX_RLE_BYTES = 2_000_000

_UPRIGHT = {  # what turns a picture of this EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Pixels = jpeg.Pixels
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274


class Picture:
    """An upright RGB picture of ``size`` (width, height).

    ``pixels`` (H, W, 3), uint8, may be of a smaller scale; ``image`` is always the whole.
    """

    def __init__(
        self, pixels: Pixels, size: tuple[int, int], load: Callable[[], Image.Image]
    ) -> None:
        self.pixels, self.size, self._load = pixels, size, load

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]

    @property
    def image(self) -> Image.Image:
        """The whole picture for drawing on, mode ``RGB``, decoded each time."""
        return self._load()

    @classmethod
    def of(cls, image: Image.Image) -> Picture:
        """A picture that is decoded already."""
        return cls(np.asarray(image.convert("RGB")), image.size, lambda: image)


def read(
    data: bytes | bytearray | memoryview,
    max_pixels: int,
    wanted: Callable[[tuple[int, int]], tuple[int, int] | None],
) -> Picture:
    """The picture in ``data``, with pixels enough for what it will be resized to.

    ``wanted`` says that size (width, height) for a picture's own, or None: then no pixel may be
    left out. Raises what ``decode`` raises.
    """
    data = bytes(data)
    if formats.sniff(data) == "JPEG" and (found := _read_jpeg(data, max_pixels, wanted)):
        return found
    image = decode(data, max_pixels)
    # Kept beside the pixels it would more than double what a large picture takes.
    return Picture(np.asarray(image), image.size, lambda: decode(data, max_pixels))


def read_all(
    files: Sequence[bytes],
    max_pixels: int,
    wanted: Callable[[tuple[int, int]], tuple[int, int] | None],
) -> list[Picture]:
    """The pictures of one request, which together decode to at most ``max_pixels``.

    Else a few bytes for each of them would take gigabytes. Raises what ``read`` raises, of several
    with the index of the picture.
    """
    found: list[Picture] = []
    decoded = 0
    for index, data in enumerate(files):
        try:
            found.append(read(data, max_pixels, wanted))
        except RequestError as error:
            if len(files) == 1:
                raise
            words, told = f"instances[{index}]: {error}", error.details
            raise type(error)(words, **told, instance=index) from error
        height, width, _ = found[-1].pixels.shape
        decoded += height * width
        if decoded > max_pixels:
            raise TooLarge(
                f"{len(found)} of {len(files)} pictures of this request have {decoded} pixels to "
                f"decode; the limit of one request is {max_pixels}: send fewer at a time",
                max_pixels=max_pixels,
            )
    return found


def _read_jpeg(
    data: bytes, max_pixels: int, wanted: Callable[[tuple[int, int]], tuple[int, int] | None]
) -> Picture | None:
    trimmed, exif, scans = formats.trim_jpeg(data)
    size = jpeg.size(trimmed)
    if size is None:
        return None
    _check_size(size, max_pixels)
    _check_scans(scans, size, max_pixels)
    orientation = formats.exif_orientation(exif)
    turned = orientation >= 5
    shown = size[::-1] if turned else size
    target = wanted(shown)
    pixels = jpeg.decode(trimmed, target[::-1] if target and turned else target)
    if pixels is None:
        return None
    return Picture(
        jpeg.upright(pixels, orientation) if orientation > 1 else pixels,
        shown,
        lambda: decode(data, max_pixels),
    )


def describe_accepted() -> str:
    """The accepted formats for a sentence: ``JPEG, PNG, WebP, GIF, BMP or TIFF``."""
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def decode(data: bytes | bytearray | memoryview, max_pixels: int) -> Image.Image:
    """The picture in ``data``: mode ``RGB``, upright by its EXIF orientation, first frame.

    Transparency is composited over white. 16-bit samples keep their upper 8 bits, so black stays
    black and white stays white. Colour profiles are ignored, as they are when networks are
    trained. An orientation that cannot be read counts as none. ``max_pixels`` is checked on the
    header, before memory for pixels is taken; above 178 million Pillow has a limit of its own.

    Raises ``UnsupportedPicture`` (415): not one of ``FORMATS``, or samples without an agreed
    black and white (float, wide or negative integers). ``TooLarge`` (413): more pixels than
    ``max_pixels``. ``BrokenPicture`` (422): damaged or cut off.
    """
    data = bytes(data)
    if (kind := formats.sniff(data)) is None:
        message = f"the body is {formats.describe(data)}; send a picture as {describe_accepted()}"
        raise UnsupportedPicture(message, accepted=[*FORMATS])
    # The signature has settled which format was meant, so whatever Pillow then raises is about
    # these bytes: it documents no set of exceptions, and OSError, SyntaxError, ValueError,
    # EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error and zlib.error occur.
    try:
        with _quiet:
            loaded, orientation = _load(data, kind, max_pixels)
            picture = _to_rgb(loaded)
    except RequestError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise TooLarge(f"this {kind} picture asks for more memory than it may have") from error
    except Exception as error:
        reason = one_line(error, 120) or type(error).__name__
        raise BrokenPicture(f"this {kind} picture cannot be read: {reason}") from error
    turn = _UPRIGHT.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _load(data: bytes, kind: str, max_pixels: int) -> tuple[ImageFile, int]:
    """The loaded first frame and its orientation."""
    exif, scans = b"", 1
    if kind == "JPEG":
        data, exif, scans = formats.trim_jpeg(data)
    elif kind == "PNG":
        data, exif = formats.trim_png(data)
    elif kind == "GIF":
        formats.check_gif(data)
    elif kind == "WebP":
        # libwebp takes the memory when the file is opened, so the header is read before.
        _check_size(formats.webp_size(data) or (0, 0), max_pixels)
    picture = _PLUGINS[kind](BytesIO(data))
    _check_size(picture.size, max_pixels)
    _check_scans(scans, picture.size, max_pixels)
    if len(data) > MAX_RLE_BYTES and any(tile.codec_name == "bmp_rle" for tile in picture.tile):
        raise TooLarge(
            f"a run-length encoded BMP of {len(data)} bytes; at most {MAX_RLE_BYTES} are read: "
            "send it as PNG"
        )
    if "transparency" in picture.info:
        _fit_key(picture)
    picture.load()
    if isinstance(picture, TiffImageFile):
        orientation = picture.tag_v2.get(_ORIENTATION)
        return picture, orientation if isinstance(orientation, int) else 1
    return picture, formats.exif_orientation(exif or picture.info.get("exif", b""))


def _fit_key(picture: ImageFile) -> None:
    """Bring the one clear colour of a PNG to the 8 bits that Pillow makes of samples, and not of
    it; of 16 the upper ones. To be called before ``load``, which forgets how they are coded."""
    for tile in picture.tile:
        key = picture.info["transparency"]
        if tile.args in ("L;2", "L;4"):
            most = 3 if tile.args == "L;2" else 15
            picture.info["transparency"] = (key & most) * 255 // most
        elif tile.args == "RGB;16B":
            picture.info["transparency"] = tuple(sample >> 8 for sample in key)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        message = (
            f"the picture is {width}x{height}, {width * height} pixels; the limit is {max_pixels}"
        )
        raise TooLarge(message, width=width, height=height, max_pixels=max_pixels)
    if max(size) > MAX_SIDE:
        message = f"the picture is {width}x{height}; the limit of a side is {MAX_SIDE}"
        raise TooLarge(message, width=width, height=height, max_side=MAX_SIDE)


def _check_scans(scans: int, size: tuple[int, int], max_pixels: int) -> None:
    most = min(MAX_SCANS, FULL_SCANS * max_pixels // max(size[0] * size[1], 1))
    if scans > most:
        raise BrokenPicture(
            f"this JPEG picture of {size[0]}x{size[1]} has {scans} scans, at most {most} are read: "
            "save it anew"
        )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        message = "float samples have no agreed white; send 8 or 16 bit integers"
        raise UnsupportedPicture(message, accepted=[*FORMATS])
    if picture.mode.startswith("I"):
        picture = _to_8_bits(picture)
    if picture.mode == "La":
        picture = picture.convert("LA")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    canvas = Image.new("RGB", layer.size, "white")
    canvas.paste(layer, mask=layer.getchannel("A"))
    return canvas


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Grey of mode ``I;16*`` or ``I`` to mode ``L``."""
    samples = np.asarray(picture)
    if picture.mode == "I" and (samples.min() < 0 or samples.max() > 65535):
        message = "integer samples outside 0..65535 have no agreed white; send 8 or 16 bit"
        raise UnsupportedPicture(message, accepted=[*FORMATS])
    tags = picture.tag_v2 if isinstance(picture, TiffImageFile) else {}
    # The upper 8 bits, and no rounding, because Pillow reads 16-bit colour so.
    grey = (samples >> (4 if tags.get(_BITS_PER_SAMPLE) == (12,) else 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero: Pillow inverts 8 bits but not 16
        grey = 255 - grey
    clear = picture.info.get("transparency")
    return Image.fromarray(grey if clear is None else np.where(samples == clear, 255, grey))


class _Tiff(TiffImageFile):
    """A TIFF whose orientation is left alone: Pillow rewrites its EXIF for it, which can fail."""

    def load_end(self) -> None:
        self._size = self.im.size


@contextmanager
def _unwarned() -> Iterator[None]:
    """Drops Pillow's warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


_quiet = Overlapping(_unwarned)
_PLUGINS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": _Tiff,
}
