"""The contract of a task and everything that all tasks share.

A task is one file in ``handlers/tasks`` with one subclass of ``TaskHandler``. It says what the
exported head is (``decode``), how a picture becomes pixels (``preprocess``), how one picture's
outputs become an answer (``postprocess``), how an answer is drawn (``draw``) and how two answers
are compared (``compare``, ``margin``). Batches, errors, formats and loading are done here.
"""

from __future__ import annotations

import json
import logging
import os
import time
import traceback
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from PIL import Image

from handlers import (
    answer_size,
    device,
    drawing,
    golden,
    grouping,
    hold,
    memory,
    pictures,
    request_log,
    requests,
    streams,
    torch_on_demand,
)
from handlers.accept import JSON
from handlers.bundle import DECODE_FILE, Bundle
from handlers.errors import BadRequest, GoldenError, InferenceError, RequestError
from handlers.foreign import Foreign, Meaning, meaning_of
from handlers.formats import FORMATS
from handlers.inputs import ImageInput
from handlers.isolation import explained, failure, guarded
from handlers.metrics import GOLDEN_OK, LOAD_SECONDS, LOADS, Publisher
from handlers.options import Option
from handlers.pictures import Picture
from handlers.plugins import halved, load_runtime
from handlers.runtimes import Array, Arrays, check_requirements
from handlers.stages import Stages
from handlers.torchserve import BaseHandler

if TYPE_CHECKING:
    from torch import nn

S = TypeVar("S")
T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """How far one answer is from another: same decisions? largest move of a score? in words.

    ``figures`` are what else was measured; of several pictures a report has the least of those
    that are called ``least_...``, the largest of ``largest_...``, and the sum of others.
    """

    same: bool
    score: float
    detail: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class Item:
    """One picture on its way through ``predict``, with its request's options."""

    picture: Picture
    options: dict[str, Any]


class TaskHandler(BaseHandler):
    """A TorchServe handler for one task; nothing of a request is kept on ``self``."""

    # What a spec's ``decode`` may set, with defaults: it is fixed in the exported module.
    decode_settings: ClassVar[dict[str, Any]] = {}
    # The least and the most of those that are numbers; None: there is no such bound.
    decode_bounds: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {}
    # The input where a spec says none, and the mean and std where its input says none; None: it
    # must say the input, and mean and std are ImageNet's.
    default_input: ClassVar[ImageInput | None] = None
    # Whether outputs are real numbers of a fixed shape that parity may compare one by one.
    continuous: ClassVar[bool] = True
    # Fields of ``Closeness`` that ``compare`` reads of the bundle.
    compared_by: ClassVar[tuple[str, ...]] = ()
    # Whether the exported module loops over the pictures of a batch, so that tracing fixes their
    # number at one.
    loops: ClassVar[bool] = False
    # How many classes a network tells apart at least, for the scores of one alone say nothing.
    least_classes: ClassVar[int] = 1
    # What a bare network takes and gives, in words for who brings another one.
    network_form: ClassVar[str] = ""
    # torchvision's module whose networks this task takes by their names, and what a model file of
    # one of them says beside its name and its weights.
    torchvision: ClassVar[str] = ""
    torchvision_keys: ClassVar[Mapping[str, Any]] = {}
    # The most labels that an answer can tell apart; None: any number, 0: it has none.
    most_labels: ClassVar[int | None] = None
    # Whether an answer tells classes by their labels alone, so that no two may have the same.
    distinct_labels: ClassVar[bool] = False
    # Whether the centre crop of a picture can be answered for: False where answers speak of every
    # pixel.
    crops: ClassVar[bool] = True
    # Python packages of others that some answers need, beside those of every worker.
    requires: ClassVar[tuple[str, ...]] = ()
    # What the outputs of artifacts that others exported may mean; none: the task takes no such.
    meanings: ClassVar[tuple[Meaning, ...]] = ()

    bundle: Bundle
    model: Callable[..., Arrays]
    # The torch device that ``model`` runs on.
    place: str = "cpu"
    # Calls of ``model`` that may run at once.
    model_streams: int = 1
    # Bytes that TorchServe takes in one answer.
    answer_limit: int = answer_size.DEFAULT
    # Decodes and prepares pictures of a batch side by side where a worker has several cores.
    pool: ThreadPoolExecutor | None = None

    # What a task says ------------------------------------------------------------------------

    @staticmethod
    def adapt(network: nn.Module, settings: dict[str, Any]) -> nn.Module:
        """The network as ``decode`` needs it: normalised pixels (N, C, H, W) -> tensors.

        An ``Adapter`` around a network that takes or gives lists or dictionaries.
        """
        return network

    @staticmethod
    def settled(network: nn.Module, settings: dict[str, Any]) -> dict[str, Any]:
        """``decode`` settings as the bare network has them after ``adapt``, for the archive to
        tell."""
        return settings

    @staticmethod
    @abstractmethod
    def decode(settings: dict[str, Any]) -> nn.Module:
        """The head: the network's output for N pictures -> a tuple of tensors with axis 0 = N."""

    def options(self) -> list[Option]:
        """Options of a request, with defaults from the archive."""
        return []

    def fixed(self) -> dict[str, str]:
        """What clients may take for options and the archive fixes: names, with the reason."""
        return {}

    def preprocess(self, picture: Picture | Image.Image) -> Array:
        """Pixels (H, W, C), uint8, of an RGB picture."""
        return self.bundle.input.prepare(picture)

    @abstractmethod
    def postprocess(self, outputs: Arrays, picture: Picture, options: dict[str, Any]) -> Any:
        """The answer, as JSON values, from the outputs (without batch axis) of one picture."""

    @abstractmethod
    def draw(self, answer: Any, picture: Image.Image) -> Image.Image:
        """The picture with the answer drawn on it."""

    @abstractmethod
    def compare(self, expected: Any, answer: Any, **given: Any) -> Difference:
        """The difference between two answers to one picture; none, and score 0, to itself.

        ``given`` are the options both were asked with, where they are not the defaults.
        """

    @abstractmethod
    def margin(self, answer: Any, **given: Any) -> float:
        """How far the answer's decision is from another one; 0 is a tie. ``given`` as above."""

    def drawing_options(self) -> dict[str, Any]:
        """Options that a drawn answer needs, whatever the client asked."""
        return {}

    # The metric of labelled pictures, in the field's words.
    required: ClassVar[tuple[str, ...]] = ("metric_name",)
    optional: ClassVar[tuple[type, ...]] = ()
    metric_name: ClassVar[str]
    # How often a bootstrap draws pictures and computes it: less where that takes long.
    resamples: ClassVar[int] = 1000

    @abstractmethod
    def evidence(self, answer: Any, truth: Any) -> Any:
        """What one answer (with ``widest`` options) adds to the metric; truths as the task says.

        Raises SpecError for a truth that is not of the answer's picture.
        """

    @staticmethod
    @abstractmethod
    def metric(evidence: Sequence[Any]) -> float:
        """``metric_name``, 0 to 1, of what all pictures add to it; a bootstrap repeats some."""

    def labelled(self, folder: Path) -> list[tuple[Path, Any]]:
        """Pictures of a folder and their truths for ``metric``; empty where it has no labels.

        Raises SpecError for labels that cannot be read or that the model does not know.
        """
        return []

    @abstractmethod
    def as_truth(self, answer: Any) -> Any:
        """An answer as the truth of ``metric``, to measure how far others agree with it."""

    @staticmethod
    @abstractmethod
    def summary(answer: Any) -> str:
        """The answer in a few words, for a person at a terminal."""

    def widest(self) -> dict[str, Any]:
        """Options whose answer shows most of the outputs: what parity compares beside defaults."""
        return {}

    @staticmethod
    def classes(network: nn.Module, outputs: Any) -> int | None:
        """How many labels a bare network needs, by itself or by its adapted ``outputs``, which
        ``decode`` takes; None: cannot be told."""
        return None

    # What all tasks share --------------------------------------------------------------------

    def initialize(self, context: Any) -> None:
        """Load the archive at ``model_dir`` and answer its golden requests; raises LoadError."""
        start = time.perf_counter()
        folder = Path(context.system_properties["model_dir"])
        self.answer_limit = answer_size.limit()
        self.bind(Bundle.read(folder), folder, context.system_properties.get("gpu_id"))
        with self._publisher(context) as publisher:
            try:
                golden.check(self, folder)
            except GoldenError:
                publisher.add(GOLDEN_OK, 0)
                raise
            publisher.add(GOLDEN_OK, 1)
            publisher.add(LOAD_SECONDS, time.perf_counter() - start)
            publisher.add(LOADS, 1)
        self.manifest, self.initialized = context.manifest, True

    def bind(self, bundle: Bundle, folder: Path, gpu_id: int | None = device.FIRST) -> None:
        """Take the model of an unpacked archive, unchecked; outside a worker on the first GPU."""
        self.bundle = bundle
        runtime = load_runtime(bundle.runtime)
        check_requirements(runtime, bundle.runtime)
        options = {**bundle.runtime_options, "threads": device.threads(bundle.limits)}
        options |= {"precision": bundle.precision, "batch": bundle.artifact_batch}
        if self.needs_torch(bundle):
            # Now, for the first request that needs it must not wait for it.
            torch_on_demand.package()
            memory.keep_freed()
        if options["threads"] > 1:
            self.pool = ThreadPoolExecutor(
                options["threads"], "pictures", initializer=_torch_threads, initargs=(1,)
            )
        _torch_threads(options["threads"])
        place = device.choose(bundle.limits.device, gpu_id, runtime.devices, runtime.needs_torch)
        device.exact(place)
        self.place = place
        model = runtime(folder / bundle.artifact, place, options)
        self.model, self.model_streams = model, model.streams
        if (folder / DECODE_FILE).exists():
            from handlers import split

            beside = device.of_torch(place)
            self.model = split.Halves(model, split.load(folder, bundle.input, beside), beside)
            # The second half keeps a picture's features on itself.
            self.model_streams = 1
        if bundle.foreign is not None:
            meaning = meaning_of(bundle.foreign.outputs, self.meanings)
            count = len(bundle.labels)
            self.model = Foreign(model, bundle.foreign, bundle.input, meaning, count)
        # They follow from the bundle, and each request asks for them.
        self._offered = self.options(), self.fixed()

    @classmethod
    def needs_torch(cls, bundle: Bundle) -> bool:
        """Whether the worker of ``bundle`` computes anything with PyTorch."""
        if load_runtime(bundle.runtime).needs_torch or bundle.input.needs_torch:
            return True
        if bundle.foreign is None:
            return halved(bundle.task, bundle.runtime, bundle.precision)
        return meaning_of(bundle.foreign.outputs, cls.meanings).needs_torch

    def predict(self, items: list[Item], clock: Stages | None = None) -> list[Any]:
        """Answers, or RequestErrors, of pictures of any sizes."""
        clock = clock or Stages()
        with clock("preprocess"):
            arrays = self._each(lambda item: guarded(self.preprocess, item.picture), items)
        with clock("inference"):
            outputs = self.inference(arrays)
        with clock("postprocess"):
            return [self._finish(*each) for each in zip(outputs, items, strict=True)]

    def inference(self, arrays: Sequence[Array | RequestError]) -> list[Arrays | RequestError]:
        """Run the model once per group of equal shapes; outputs in the order of ``arrays``.

        Groups run side by side where the runtime has streams for them. An error in the place of an
        array, or of one array, stays in its place.
        """
        found = {i: each for i, each in enumerate(arrays) if not isinstance(each, RequestError)}
        failed = {i: each for i, each in enumerate(arrays) if isinstance(each, RequestError)}
        results: dict[int, Arrays | RequestError] = {**failed}
        groups = grouping.groups(found, self.bundle.artifact_batch, self.model_streams)
        together = self._each if self.model_streams > 1 else map
        for indices, outputs in zip(
            groups,
            together(lambda group: self._run([found[i] for i in group]), groups),
            strict=True,
        ):
            results.update(zip(indices, outputs, strict=True))
        return [results[index] for index in range(len(arrays))]

    def answer(self, images: Iterable[Image.Image], **given: Any) -> list[Any]:
        """Answers outside a request, with default options but ``given``.

        Raises RequestError, which says what the task or the runtime failed of, and where.
        """
        options = self.defaults() | given
        answers = self.predict([Item(Picture.of(image), options) for image in images])
        for answer in answers:
            if isinstance(answer, RequestError):
                raise explained(answer)
        return answers

    def drawn(self, image: Image.Image) -> bytes:
        """The answer drawn on a picture, outside a request, as PNG; raises what ``answer`` does."""
        options = self.drawing_options()
        (answer,) = self.answer([image], **options)
        found = guarded(lambda: drawing.encode(self.draw(answer, image), "image/png"))
        if isinstance(found, RequestError):
            raise explained(found)
        return found

    def defaults(self) -> dict[str, Any]:
        """All options at their defaults."""
        return {option.name: option.default for option in self.options()}

    def handle(self, rows: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch of requests; one that fails gets its own status and error body."""
        clock = Stages()
        with clock("decode"):
            asked = self._each(
                lambda each: self._receive(each[1], context, each[0]), enumerate(rows)
            )
        if asked == [None]:
            # A client may ask by a header; then neighbours are in the batch, and wait for answers.
            hold.wait_if_asked()
        items = [item for request in asked if isinstance(request, _Asked) for item in request.items]
        answers = iter(self.predict(items, clock) if items else [])
        with clock("encode"):
            replies = [
                self._reply(each, answers, context, i, clock) for i, each in enumerate(asked)
            ]
        predictions = sum(request is not None for request in asked)
        if self.bundle.limits.log_requests:
            ids = [context.get_request_id(i) for i in clock.answered]
            request_log.answered(self.bundle, ids, sum(clock.seconds.values()), predictions)
        with self._publisher(context) as publisher:
            clock.publish(publisher, predictions, len(items))
        return replies

    def describe(self) -> dict[str, Any]:
        """What this model is, as JSON values (``GET /models/NAME?customized=true``)."""
        bundle = self.bundle
        return {
            "model": bundle.name,
            "version": bundle.version,
            "task": bundle.task,
            "runtime": bundle.runtime,
            "precision": bundle.told_precision,
            "labels": bundle.labels,
            "input": {
                **bundle.input.describe(),
                "formats": list(FORMATS),
                "max_pixels": bundle.limits.max_pixels,
                "max_pictures": bundle.limits.max_pictures,
            },
            "options": {option.name: option.describe() for option in self.options()},
            "provenance": bundle.provenance,
        }

    def _each(self, step: Callable[[S], T], things: Iterable[S]) -> list[T]:
        """``step`` of each thing, in their order; side by side where there is a pool."""
        listed = list(things)
        # One alone would only wait for another thread to wake up.
        pool = self.pool if len(listed) > 1 else None
        return list(map(step, listed) if pool is None else pool.map(step, listed))

    def _receive(
        self, row: dict[str, Any], context: Any, index: int
    ) -> _Asked | RequestError | None:
        """A row's pictures, its error, or None for a describe call."""
        headers = context.get_all_request_header(index)
        if headers.get("describe") == "True":
            return None
        return guarded(self._read, row, headers)

    def _read(self, row: dict[str, Any], headers: Mapping[str, Any]) -> _Asked:
        """What a row asks, with its pictures decoded; raises RequestError."""
        if headers.get("explain") == "True":
            raise BadRequest("explanations are not offered: ask /predictions/MODEL")
        limits = self.bundle.limits
        options, fixed = self._offered
        request = requests.read(row, headers, options, limits.max_pictures, fixed)
        given = self.bundle.input
        images = pictures.read_all(request.pictures, limits.max_pixels, given.wanted)
        given.check_together([image.size for image in images], limits.max_pictures)
        forced = {} if request.media_type == JSON else self.drawing_options()
        return _Asked(request, [Item(image, request.options | forced) for image in images])

    def _run(self, arrays: list[Array]) -> list[Arrays | RequestError]:
        try:
            outputs = self.model(np.stack(arrays))
            return [tuple(output[i] for output in outputs) for i in range(len(arrays))]
        # A runtime may fail in ways of its own; one picture must not take its neighbours with it.
        except Exception as error:
            if self.initialized and device.is_lost(self.place):
                # TorchServe starts another one for a worker that ends, not for one that fails.
                logger.exception("marsmith: the GPU is lost to this worker, which ends")
                os._exit(1)
            if len(arrays) == 1:
                # The error is kept until it is answered; what its frames hold others may need.
                traceback.clear_frames(error.__traceback__)
                return [failure(error, "the model failed on this picture")]
            logger.warning("a batch of %d failed, running it singly", len(arrays), exc_info=True)
        # Not before the error is gone, whose frames hold all that the batch took.
        return [self._run([array])[0] for array in arrays]

    def _finish(self, outputs: Arrays | RequestError, item: Item) -> Any:
        if isinstance(outputs, RequestError):
            return outputs
        if not all(np.isfinite(output).all() for output in outputs):
            return InferenceError("the model's output for this picture is not finite")
        return guarded(self.postprocess, outputs, item.picture, item.options)

    def _publisher(self, context: Any) -> Publisher:
        # A process without TorchServe has none.
        return Publisher(context.metrics is not None, self.bundle.name, self.bundle.version)

    def _reply(
        self,
        asked: _Asked | RequestError | None,
        answers: Any,
        context: Any,
        i: int,
        clock: Stages,
    ) -> bytes:
        media_type = JSON
        try:
            if isinstance(asked, RequestError):
                raise asked
            if asked is None:
                body = _json({**self.describe(), "worker": os.getpid()})
            else:
                mine = [next(answers) for _ in asked.items]
                media_type = asked.request.media_type
                encoded = guarded(self._encode, asked, mine)
                if isinstance(encoded, RequestError):
                    raise encoded
                body = encoded
                clock.answered.append(i)
        except RequestError as error:
            media_type, body = JSON, error.body()
            clock.failed[error.status] += 1
            request_log.failed(error, self.bundle, context.get_request_id(i))
            request_log.forget(error)
            context.set_response_status(code=error.status, phrase=error.phrase, idx=i)
        context.set_response_content_type(i, media_type)
        streams.finish(context, i)
        return body

    def _encode(self, asked: _Asked, answers: list[Any]) -> bytes:
        for answer in answers:
            if isinstance(answer, RequestError):
                raise answer
        if asked.request.media_type != JSON:
            drawn = self.draw(answers[0], asked.items[0].picture.image)
            body = drawing.encode(drawn, asked.request.media_type)
        else:
            body = _json({"predictions": answers} if asked.request.many else answers[0])
        return answer_size.check(body, self.answer_limit)


@dataclass(frozen=True)
class _Asked:
    request: requests.Request
    items: list[Item]


def _torch_threads(count: int) -> None:
    """What torch, where it is, may use for what this thread asks of it.

    A thread that prepares pictures has one core: torch would take all of them for each picture.
    """
    if torch_on_demand.loaded():
        torch_on_demand.package().set_num_threads(count)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
