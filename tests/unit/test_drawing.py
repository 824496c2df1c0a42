"""Drawings show the answer: its colours where it is, its words inside and readable."""

from __future__ import annotations

import itertools
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from handlers import drawing
from handlers.drawing import LEAST_SIDE, boxes, color, draw_boxes, draw_labels, draw_mask, encode
from handlers.drawing.panel import PANEL, enlargement
from handlers.drawing.style import contrasting, fit, font, percent, plain
from handlers.errors import TooLarge

SIZES = [(1, 1), (32, 32), (200, 150), (640, 480), (2000, 1500), (1, 2000), (2000, 3), (383, 9)]
AWKWARD = ["", " ", "a\nb\tc", "猫", "🙂", "Straße", "\ud800", "\x00\x1b", "x" * 5000, "עברית"]


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (90, 90, 90))


def luminance(rgb: tuple[int, int, int]) -> float:
    channels = [c / 255 / 12.92 if c < 11 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return float(np.dot(channels, [0.2126, 0.7152, 0.0722]))


def count(picture: Image.Image, rgb: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == rgb).all(axis=2).sum())


@pytest.fixture
def tags(monkeypatch: pytest.MonkeyPatch) -> list[tuple[boxes.Box, str]]:
    """Places and texts of the tags that ``draw_boxes`` draws."""
    drawn: list[tuple[boxes.Box, str]] = []
    draw = boxes._tag

    def record(canvas: Any, tag: boxes.Box, text: str, *rest: Any) -> None:
        drawn.append((tag, text))
        draw(canvas, tag, text, *rest)

    monkeypatch.setattr(boxes, "_tag", record)
    return drawn


def test_colors_are_stable_and_distinct() -> None:
    assert [color(i) for i in (0, 1, 15)] == [(254, 101, 86), (37, 223, 167), (174, 156, 254)]
    assert len({color(i) for i in range(256)}) == 256
    first = [np.array(color(i)) for i in range(21)]
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(first, 2)) >= 20


def test_colors_stand_out() -> None:
    for index in range(256):
        rgb = color(index)
        assert max(rgb) - min(rgb) >= 40
        light, dark = sorted([luminance(rgb), luminance(contrasting(rgb))], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.0  # WCAG asks for 3 of large text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("cat", "cat"), (" a \n b", "a b"), ("Straße café", "Strasse cafe"), ("猫!", "?!")],
)
def test_words_the_font_lacks(text: str, shown: str) -> None:
    assert plain(text) == shown


@pytest.mark.parametrize("width", [0, 5, 40, 200, 3000])
@pytest.mark.parametrize("text", ["cat", "a longer name of a class", "x" * 400])
def test_fit_is_the_longest_that_fits(text: str, width: int) -> None:
    shown = fit(text, 20, width)
    assert font(20).getlength(shown) <= max(width, font(20).getlength("…"))
    if shown != text:
        longer = text[: len(shown)] + "…"
        assert font(20).getlength(longer) > width


def test_percent() -> None:
    shares = (0.0, 0.0001, 0.123, 1.0, float("nan"))
    assert [percent(share) for share in shares] == ["0.0%", "<0.1%", "12.3%", "100.0%", "?"]


@pytest.mark.parametrize("size", SIZES)
def test_small_pictures_are_enlarged(size: tuple[int, int]) -> None:
    original = grey(*size)
    original.putpixel((0, 0), (200, 0, 0))
    before = original.tobytes()
    factor = enlargement(*size)
    answers = [
        draw_labels(original, [("cat", 0.7), ("dog", 0.2)]),
        draw_boxes(original, [(0, 0, *size)], ["cat"], [0.5], [3]),
        draw_mask(original, np.zeros(size[::-1], np.uint8), {}),
    ]
    for drawn in answers:
        assert drawn.mode == "RGB"
        assert drawn.width >= size[0] * factor
        assert drawn.height >= size[1] * factor
        assert max(drawn.size) >= LEAST_SIDE
    assert original.tobytes() == before


def test_labels_leave_the_picture_as_it_is() -> None:
    picture = Image.effect_noise((640, 480), 80).convert("RGB")
    drawn = draw_labels(picture, [("cat", 0.9), ("dog", 0.1)])
    assert drawn.crop((0, 0, 640, 480)).tobytes() == picture.tobytes()
    panel = drawn.crop((0, 480, *drawn.size))
    border = [panel.crop(box) for box in ((0, 0, 8, panel.height), (632, 0, 640, panel.height))]
    assert all(part.getcolors() == [(8 * panel.height, PANEL)] for part in border)
    assert count(panel, PANEL) < 0.95 * panel.width * panel.height


def test_bars_are_as_long_as_scores() -> None:
    drawn = draw_labels(grey(800, 600), [("a", 0.8), ("b", 0.4), ("c", 0.0)])
    colors = drawing.labels._ACCENT, drawing.labels._REST
    lengths = []
    for rgb in colors:
        columns = (np.asarray(drawn) == rgb).all(axis=2).any(axis=0)
        lengths.append(int(columns.sum()))
    assert lengths[0] == pytest.approx(2 * lengths[1], rel=0.05)
    nothing = draw_labels(grey(800, 600), [("c", 0.0)])
    assert count(nothing, drawing.labels._ACCENT) == 0


@pytest.mark.parametrize("size", SIZES)
def test_awkward_labels(size: tuple[int, int]) -> None:
    scores = [0.5, 2.0, -1.0, float("nan"), float("inf"), 0.0, 1e-9, 1.0, 0.3, 0.2]
    answers = list(zip(AWKWARD, scores, strict=True))
    assert draw_labels(grey(*size), answers).height > draw_labels(grey(*size), []).height
    frames = np.tile([0.0, 0.0, *size], (10, 1))
    draw_boxes(grey(*size), frames, AWKWARD, scores, range(10))
    draw_mask(grey(*size), np.arange(10, dtype=np.uint8)[None], dict(enumerate(AWKWARD)))


def test_rows_are_bounded() -> None:
    many = draw_labels(grey(640, 480), [("cat", 0.001)] * 1000)
    assert many.size == draw_labels(grey(640, 480), [("cat", 0.001)] * 10).size


def test_frames_have_the_color_of_their_class() -> None:
    drawn = draw_boxes(grey(640, 480), [(100.4, 80.4, 300.4, 299.6)], ["cat"], [0.9], [7])
    assert drawn.size == (640, 480)
    for at in ((100, 200), (101, 200), (300, 200), (200, 80), (200, 300), (300, 300)):
        assert drawn.getpixel(at) == color(7)
    for at in ((99, 200), (301, 200), (200, 301), (200, 190), (110, 290)):
        assert drawn.getpixel(at) == (90, 90, 90)


def test_lines_grow_with_the_picture() -> None:
    def width(scale: int) -> int:
        frame = [(100 * scale, 100 * scale, 400 * scale, 400 * scale)]
        drawn = draw_boxes(grey(640 * scale, 480 * scale), frame, ["cat"], [0.9], [7])
        row = drawn.crop((0, 250 * scale, 250 * scale, 250 * scale + 1))
        return count(row, color(7))

    assert width(6) == pytest.approx(6 * width(1), rel=0.3)


def test_boxes_beyond_the_edges() -> None:
    nan, inf = float("nan"), float("inf")
    unseen = [(-50, -50, -1, -1), (700, 0, 800, 90), (nan, 0, 9, 9), (0, 0, inf, 9), (9, 9, 3, 3)]
    drawn = draw_boxes(grey(640, 480), unseen, ["cat"] * 5, [0.9] * 5, [7] * 5)
    assert drawn.tobytes() == grey(640, 480).tobytes()
    drawn = draw_boxes(grey(640, 480), [(-90, -90, 900, 900)], ["cat"], [0.9], [7])
    assert [drawn.getpixel(at) for at in ((0, 479), (639, 479), (639, 200))] == [color(7)] * 3
    assert draw_boxes(grey(640, 480), [(5, 5, 5, 5)], ["cat"], [0.9], [7]).getpixel(
        (5, 5)
    ) == color(7)
    assert draw_boxes(grey(640, 480), np.zeros((0, 4)), [], [], []).size == (640, 480)


def test_a_small_box_on_a_large_one_is_whole() -> None:
    small, large = (300, 200, 340, 240), (100, 80, 320, 400)
    drawn = draw_boxes(grey(640, 480), [small, large], ["a", "b"], [0.1, 0.9], [1, 2])
    assert all(drawn.getpixel((x, 240)) == color(1) for x in range(300, 341))


def shares_a_pixel(one: boxes.Box, other: boxes.Box) -> bool:
    return boxes._shared(one, other) > 0


@pytest.mark.parametrize("size", SIZES)
def test_tags_stay_inside(size: tuple[int, int], tags: list[tuple[boxes.Box, str]]) -> None:
    width, height = size
    spots = [(0, 0), (0.9, 0), (0, 0.9), (0.9, 0.9), (0.4, 0.4), (-0.05, 0.5), (0.95, 0.5)]
    frames = [(x * width, y * height, (x + 0.1) * width, (y + 0.1) * height) for x, y in spots]
    draw_boxes(grey(*size), frames, ["a long name"] * 7, [0.9] * 7, [1] * 7)
    factor = enlargement(*size)
    for (x0, y0, x1, y1), _ in tags:
        assert x0 >= 0
        assert y0 >= 0
        assert x1 <= width * factor
        assert y1 <= height * factor
    if min(size) > 100:
        assert len(tags) == 7


def test_tags_of_neighbours_do_not_overlap(tags: list[tuple[boxes.Box, str]]) -> None:
    frames = [(100 + 12 * i, 90 + 12 * i, 400 + 12 * i, 300 + 12 * i) for i in range(6)]
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    drawn = draw_boxes(grey(640, 480), frames, ["person"] * 6, scores, [1] * 6)
    assert [text for _, text in tags] == [f"person {score:.2f}" for score in scores]
    for (one, _), (other, _) in itertools.combinations(tags, 2):
        assert not shares_a_pixel(one, other)
    assert drawn.size == (640, 480)


def test_a_crowd_keeps_the_picture_visible(tags: list[tuple[boxes.Box, str]]) -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 1, (100, 2)) * (600, 440)
    frames = np.hstack([corners, corners + random.uniform(10, 120, (100, 2))])
    scores = random.uniform(0, 1, 100).tolist()
    classes = random.integers(0, 5, 100).tolist()
    labels = [f"class {c}" for c in classes]
    drawn = draw_boxes(grey(640, 480), frames, labels, scores, classes)
    hidden = sum(boxes._area(tag) for tag, _ in tags)
    assert hidden <= 0.2 * 640 * 480
    assert 10 < len(tags) < 100
    assert f"{max(scores):.2f}" in tags[0][1]
    legend = drawn.crop((0, 480, *drawn.size))
    assert legend.height > 20
    assert all(count(legend, color(c)) > 20 for c in range(5))


def test_mask_tints_outlines_and_leaves_the_background() -> None:
    ids = np.zeros((480, 640), np.uint8)
    ids[100:300, 200:400] = 7
    drawn = draw_mask(grey(640, 480), ids, {7: "cat"}, opacity=0.5)
    half = [round((90 + channel) / 2) for channel in color(7)]
    assert np.abs(np.array(drawn.getpixel((300, 200))) - half).max() <= 1
    assert drawn.getpixel((200, 150)) == drawn.getpixel((399, 299)) == color(7)
    for at in ((190, 150), (410, 150), (300, 90), (0, 0)):
        assert drawn.getpixel(at) == (90, 90, 90)
    for at in ((199, 150), (400, 150), (300, 99)):
        assert max(drawn.getpixel(at)) < 90
    legend = drawn.crop((0, 480, *drawn.size))
    assert count(legend, color(7)) > 20
    assert count(legend, color(0)) == 0


@pytest.mark.parametrize(("opacity", "expected"), [(0.0, (90, 90, 90)), (1.0, color(3))])
def test_mask_opacity(opacity: float, expected: tuple[int, int, int]) -> None:
    ids = np.full((480, 640), 3, np.uint8)
    assert draw_mask(grey(640, 480), ids, {}, opacity).getpixel((9, 9)) == expected


def hues(pixels: Any) -> Any:
    """Degrees, of RGB (N, 3)."""
    one = np.asarray(pixels, np.uint8).reshape(-1, 1, 3)
    return cv2.cvtColor(one.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)[:, 0, 0]


def test_a_tint_has_the_hue_of_its_class_whatever_is_below() -> None:
    """Also on a picture of strong colours, among as many classes as Pascal VOC has."""
    ramp = np.tile(np.linspace(0, 255, 420).astype(np.uint8), (420, 1))
    colorful = [np.dstack([ramp, ramp.T, 255 - ramp]), np.dstack([ramp[::-1].T, ramp, ramp.T])]
    ids = (np.mgrid[:420, :420].sum(0) // 40 % 21).astype(np.uint8)
    wanted = hues([color(index) for index in range(21)])
    for pixels in colorful:
        drawn = np.asarray(draw_mask(Image.fromarray(pixels), ids, {}, background=None))
        away = np.abs(hues(drawn[:420].reshape(-1, 3))[:, None] - wanted)
        nearest = np.minimum(away, 360 - away).argmin(1)
        assert (nearest == ids.ravel()).mean() > 0.99


def test_mask_without_background_tints_everything() -> None:
    ids = np.zeros((480, 640), np.uint8)
    drawn = draw_mask(grey(640, 480), ids, {0: "sky"}, 1.0, background=None)
    assert drawn.getpixel((5, 5)) == color(0)
    other = draw_mask(grey(640, 480), ids, {}, 1.0, background=255)
    assert other.getpixel((5, 5)) == color(0)


def test_mask_of_another_size_is_scaled() -> None:
    ids = np.array([[1, 2]], np.uint8)
    drawn = draw_mask(grey(640, 480), ids, {}, 1.0)
    assert (drawn.getpixel((10, 470)), drawn.getpixel((630, 10))) == (color(1), color(2))


def test_legend_tells_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def tell(picture: Image.Image, entries: list[Any]) -> Image.Image:
        told.extend(entries)
        return picture

    monkeypatch.setattr(drawing.masks, "add_legend", tell)
    ids = np.zeros((10, 100), np.uint8)
    ids[:, :31], ids[0, 99] = 8, 2
    draw_mask(grey(640, 480), ids, {8: "cat", 0: "background"})
    draw_mask(grey(640, 480), np.zeros((10, 100), np.uint8), {0: "background"})
    expected = [("cat", "31.0%", color(8)), ("class 2", "0.1%", color(2))]
    assert told == [*expected, ("background", "100.0%", None)]


def test_legend_is_bounded() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640), dtype=np.uint8)
    assert draw_mask(grey(640, 480), noise, dict.fromkeys(range(256), "name" * 50)).height < 2000


@pytest.mark.parametrize(("media_type", "kind"), [("image/png", "PNG"), ("image/jpeg", "JPEG")])
def test_encode(media_type: str, kind: str) -> None:
    picture = draw_boxes(grey(640, 480), [(50, 50, 300, 300)], ["cat"], [0.9], [7])
    opened = Image.open(BytesIO(encode(picture, media_type)))
    assert opened.format == kind
    difference = np.abs(np.asarray(opened.convert("RGB"), int) - np.asarray(picture, int))
    assert difference.mean() <= (0 if kind == "PNG" else 1)


def test_encode_refuses_what_jpeg_has_no_room_for() -> None:
    assert encode(grey(65_500, 2), "image/jpeg")
    assert encode(grey(65_501, 2), "image/png")
    for size in ((65_501, 2), (2, 65_501)):
        with pytest.raises(TooLarge, match="at most 65500 pixels a side: ask for image/png"):
            encode(grey(*size), "image/jpeg")


def test_encode_knows_two_types() -> None:
    with pytest.raises(ValueError, match="image/gif"):
        encode(grey(1, 1), "image/gif")
