"""The contract of a task and everything that all tasks share.

A task is one file in ``handlers/tasks`` with one subclass of ``TaskHandler``. It says what the
exported head is (``decode``), how a picture becomes pixels (``preprocess``), how one picture's
outputs become an answer (``postprocess``), how an answer is drawn (``draw``) and how two answers
are compared (``compare``, ``margin``). Batches, errors, formats and loading are done here.
"""

from __future__ import annotations

import json
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch import nn

from handlers import device, drawing, golden, pictures, requests
from handlers.accept import JSON
from handlers.bundle import Bundle
from handlers.errors import BadRequest, InferenceError, RequestError
from handlers.options import Option
from handlers.plugins import load_runtime
from handlers.runtimes import Array, Arrays
from handlers.torchserve import BaseHandler

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """How far one answer is from another: same decisions? largest move of a score? in words."""

    same: bool
    score: float
    detail: str


@dataclass
class Item:
    """One picture on its way through ``predict``, with its request's options."""

    picture: Image.Image
    options: dict[str, Any]


class TaskHandler(BaseHandler):
    """A TorchServe handler for one task; nothing of a request is kept on ``self``."""

    # What a model of this task takes at build, beside what every task has: decode's settings with
    # their defaults.
    settings: ClassVar[dict[str, Any]] = {}
    # Names of the request options whose defaults a spec may set.
    default_names: ClassVar[tuple[str, ...]] = ()

    bundle: Bundle
    model: Callable[..., Arrays]

    # What a task says ------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def decode(settings: dict[str, Any]) -> nn.Module:
        """The head: the network's output for N pictures -> a tuple of tensors with axis 0 = N."""

    def options(self) -> list[Option]:
        """Options of a request, with defaults from the archive."""
        return []

    def preprocess(self, picture: Image.Image) -> Array:
        """Pixels (H, W, C), uint8, of an RGB picture."""
        return self.bundle.input.prepare(picture)

    @abstractmethod
    def postprocess(self, outputs: Arrays, picture: Image.Image, options: dict[str, Any]) -> Any:
        """The answer, as JSON values, from the outputs (without batch axis) of one picture."""

    @abstractmethod
    def draw(self, answer: Any, picture: Image.Image) -> Image.Image:
        """The picture with the answer drawn on it."""

    @staticmethod
    @abstractmethod
    def compare(expected: Any, answer: Any) -> Difference:
        """The difference between two answers to one picture."""

    @staticmethod
    @abstractmethod
    def margin(answer: Any) -> float:
        """How far the answer's decision is from another one; 0 is a tie."""

    @staticmethod
    def classes(outputs: Arrays) -> int | None:
        """How many labels the model's outputs (with batch axis) speak of; None: cannot be told."""
        return None

    # What all tasks share --------------------------------------------------------------------

    def initialize(self, context: Any) -> None:
        """Load the archive at ``model_dir`` and answer its golden requests; raises LoadError."""
        folder = Path(context.system_properties["model_dir"])
        self.bind(Bundle.read(folder), folder, context.system_properties.get("gpu_id"))
        golden.check(self, folder)
        self.manifest, self.initialized = context.manifest, True

    def bind(self, bundle: Bundle, folder: Path, gpu_id: int | None = None) -> None:
        """Take the model of an unpacked archive, unchecked."""
        self.bundle = bundle
        runtime = load_runtime(bundle.runtime)
        options = {**bundle.runtime_options, "threads": device.threads(bundle.limits)}
        place = device.choose(bundle.limits.device, gpu_id)
        self.model = runtime(folder / bundle.artifact, place, options)

    def predict(self, items: list[Item]) -> list[Any]:
        """Answers, or RequestErrors, of pictures of any sizes."""
        arrays = [self.preprocess(item.picture) for item in items]
        outputs = self.inference(arrays)
        return [self._finish(*each) for each in zip(outputs, items, strict=True)]

    def inference(self, arrays: list[Array]) -> list[Arrays | InferenceError]:
        """Run the model once per group of equal shapes; outputs in the order of ``arrays``."""
        results: list[Arrays | InferenceError] = [InferenceError("not run")] * len(arrays)
        for indices in _groups(arrays, self.bundle.limits.batch_size):
            for index, result in zip(indices, self._run([arrays[i] for i in indices]), strict=True):
                results[index] = result
        return results

    def answer(self, images: Iterable[Image.Image]) -> list[Any]:
        """Answers with default options, outside a request; raises InferenceError."""
        defaults = {option.name: option.default for option in self.options()}
        answers = self.predict([Item(image, defaults) for image in images])
        for answer in answers:
            if isinstance(answer, RequestError):
                raise answer
        return answers

    def handle(self, rows: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch of requests; one that fails gets its own status and error body."""
        asked = [self._receive(row, context, index) for index, row in enumerate(rows)]
        items = [item for request in asked if isinstance(request, _Asked) for item in request.items]
        answers = iter(self.predict(items) if items else [])
        return [self._reply(request, answers, context, i) for i, request in enumerate(asked)]

    def describe(self) -> dict[str, Any]:
        """What this model is, as JSON values (``GET /models/NAME?customized=true``)."""
        bundle = self.bundle
        return {
            "model": bundle.name,
            "version": bundle.version,
            "task": bundle.task,
            "runtime": bundle.runtime,
            "precision": bundle.precision,
            "labels": bundle.labels,
            "input": {
                **bundle.input.describe(),
                "formats": list(pictures.FORMATS),
                "max_pixels": bundle.limits.max_pixels,
                "max_pictures": bundle.limits.max_pictures,
            },
            "options": {option.name: option.describe() for option in self.options()},
            "provenance": bundle.provenance,
        }

    def _receive(self, row: dict[str, Any], context: Any, index: int) -> _Asked | RequestError | None:
        """A row's pictures, its error, or None for a describe call."""
        headers = context.get_all_request_header(index)
        if headers.get("describe") == "True":
            return None
        limits = self.bundle.limits
        try:
            if headers.get("explain") == "True":
                raise BadRequest("explanations are not offered: ask /predictions/MODEL")
            request = requests.read(row, headers, self.options(), limits.max_pictures)
            images = [pictures.decode(data, limits.max_pixels) for data in request.pictures]
        except RequestError as error:
            return error
        return _Asked(request, [Item(image, request.options) for image in images])

    def _run(self, arrays: list[Array]) -> list[Arrays | InferenceError]:
        try:
            outputs = self.model(np.stack(arrays))
            return [tuple(output[i] for output in outputs) for i in range(len(arrays))]
        # A runtime may fail in ways of its own; what one picture does must not reach its neighbours.
        except Exception as error:
            if len(arrays) > 1:
                logger.warning("a batch of %d failed, running it singly", len(arrays), exc_info=True)
                return [self._run([array])[0] for array in arrays]
            logger.exception("inference failed for a picture of shape %s", arrays[0].shape)
            return [InferenceError(f"the model failed on this picture: {type(error).__name__}")]

    def _finish(self, outputs: Arrays | InferenceError, item: Item) -> Any:
        if isinstance(outputs, InferenceError):
            return outputs
        if not all(np.isfinite(output).all() for output in outputs):
            return InferenceError("the model's output for this picture is not finite")
        return self.postprocess(outputs, item.picture, item.options)

    def _reply(self, asked: _Asked | RequestError | None, answers: Any, context: Any, i: int) -> bytes:
        media_type = JSON
        try:
            if isinstance(asked, RequestError):
                raise asked
            if asked is None:
                body = _json(self.describe())
            else:
                mine = [next(answers) for _ in asked.items]
                media_type = asked.request.media_type
                body = self._encode(asked, mine)
        except RequestError as error:
            media_type, body = JSON, error.body()
            context.set_response_status(code=error.status, phrase=error.phrase, idx=i)
        context.set_response_content_type(i, media_type)
        return body

    def _encode(self, asked: _Asked, answers: list[Any]) -> bytes:
        for answer in answers:
            if isinstance(answer, RequestError):
                raise answer
        if asked.request.media_type != JSON:
            drawn = self.draw(answers[0], asked.items[0].picture)
            return drawing.encode(drawn, asked.request.media_type)
        return _json({"predictions": answers} if asked.request.many else answers[0])


@dataclass(frozen=True)
class _Asked:
    request: requests.Request
    items: list[Item]


def _groups(arrays: list[Array], most: int) -> list[list[int]]:
    """Indices of equal shapes together, at most ``most`` in a group."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, array in enumerate(arrays):
        by_shape.setdefault(array.shape, []).append(index)
    return [same[i : i + most] for same in by_shape.values() for i in range(0, len(same), most)]


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
