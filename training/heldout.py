"""The held-out pictures on which the accuracies in training/README.md are stated.

No training script reads them before its weights are final. Called without a count, each function
gives the whole stated set; rendering takes about 10 ms a picture.
"""

from training import data


def digits() -> list[tuple[bytes, int]]:
    """360 handwritten digits: PNG bytes (64x64, grey) and the digit."""
    return data.digits("test")


def shapes(n: int = 1000) -> list[data.Shape]:
    """The first `n` pictures with one dominant shape: JPEG bytes and an index in shapes.SHAPES."""
    return data.shapes("test", n)


def scenes(n: int = 200) -> list[data.AnnotatedScene]:
    """The first `n` scenes: JPEG bytes, boxes, class ids and semantic map.

    Boxes are float32 [objects, 4] (xmin, ymin, xmax, ymax in pixels); class ids int64 [objects]
    and map uint8 [height, width] are indices in render.LABELS, where 0 is the background.
    """
    return data.annotated_scenes("test", n)
