"""Choose an archive's golden requests: the samples that its artifact decides most clearly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from handlers import golden
from handlers.contract import file_of
from handlers.errors import ParityError, PluginError
from handlers.golden import Golden
from handlers.task import TaskHandler

COUNT = 2
LONGEST_SIDE = 320


def write(
    artifact: TaskHandler,
    fresh: TaskHandler,
    images: list[Image.Image],
    folder: Path,
) -> None:
    """Write ``golden/`` below ``folder``, and draw the answer that is decided most clearly.

    Raises ParityError when none is, PluginError for an answer that is no JSON, RequestError for one
    that cannot be drawn.

    ``fresh`` has the same artifact, loaded anew, and is asked one by one, as a worker is: an answer
    that moves by itself is no proof.
    """
    tolerance = artifact.bundle.closeness.golden
    small = [_shrunk(image) for image in images]
    answers = _as_json(artifact, artifact.answer(small))
    margins = _margins(artifact, small, answers)
    order = sorted(range(len(small)), key=lambda index: -margins[index])
    clear = [
        index
        for index in order
        if margins[index] > 2 * tolerance
        and _steady(fresh, small[index], answers[index], tolerance / 2)
    ][:COUNT]
    if not clear:
        raise ParityError(
            f"no sample is decided clearly: the best margin is {max(margins):.3g}, needed is more "
            f"than {2 * tolerance:g} and the same answer when it is asked again. Give pictures of "
            "this model's kind with --samples"
        )
    # A task that cannot draw must stop the build and not a client's request.
    fresh.drawn(small[clear[0]])
    (folder / "golden").mkdir()
    requests = []
    for number, index in enumerate(clear):
        name = f"golden/{number}.png"
        small[index].save(folder / name, optimize=True)
        requests.append(Golden(name, answers[index], tolerance))
    (folder / golden.FILE).write_text(golden.to_json(requests), encoding="utf-8")


def _margins(task: TaskHandler, images: list[Image.Image], answers: list[Any]) -> list[float]:
    """The margin of each default answer or, if that is less, of the widest one.

    One label of an answer does not tell how near the next is, and a box that the default threshold
    leaves out decides nothing.
    """
    options = task.widest()
    widest = task.answer(images, **options)
    return [
        min(task.margin(answer), task.margin(wide, **options))
        for answer, wide in zip(answers, widest, strict=True)
    ]


def _as_json(task: TaskHandler, value: Any) -> Any:
    """Answers as a client gets them; raises PluginError for what is no JSON."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"{file_of(type(task))}: postprocess gives what is no JSON ({error}): return int, "
            "float, str, lists and dictionaries, not numpy's or torch's own"
        ) from error


def _steady(handler: TaskHandler, image: Image.Image, answer: Any, tolerance: float) -> bool:
    again = _as_json(handler, handler.answer([image])[0])
    return golden.difference(handler, answer, again, tolerance) is None


def _shrunk(image: Image.Image) -> Image.Image:
    """At most LONGEST_SIDE pixels wide and high: a PNG of a photograph is large."""
    copy = image.copy()
    copy.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return copy
