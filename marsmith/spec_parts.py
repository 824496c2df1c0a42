"""The parts of a model's YAML file; see ``marsmith.spec``."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from handlers.bundle import Limits
from handlers.closeness import DEFAULTS, Closeness
from handlers.cores import usable
from handlers.resampling import FILTERS, PLAIN_MODES, TENSOR_MODES

Side = Annotated[int, Field(ge=1, le=8192)]
# Keys that a ``Closeness`` has under another name.
_FIELDS = {"tolerance": "outputs"}
Size = Side | tuple[Side, Side] | None


class Strict(BaseModel):
    """Knows its keys and types, and refuses others."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class InputSpec(Strict):
    """Geometry and colour of the input; see ``handlers.inputs.ImageInput``.

    ``layout``, ``dtype`` and ``scale``, by which pixels are divided, are those of an artifact that
    others exported; see ``handlers.foreign.Contract``.
    """

    color: Literal["rgb", "bgr", "gray"] = "rgb"
    resize: Size = None
    crop: Size = None
    interpolation: str = "bilinear"
    mean: Annotated[list[float], Field(strict=False)] = [0.485, 0.456, 0.406]
    std: Annotated[list[float], Field(strict=False)] = [0.229, 0.224, 0.225]
    antialias: bool = True
    letterbox: Annotated[int, Field(ge=0, le=255)] | None = None
    letterbox_position: Literal["center", "top-left"] = "center"
    backend: Literal["pil", "tensor"] = "pil"
    layout: Literal["nchw", "nhwc", "chw", "hwc"] = "nchw"
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    scale: Annotated[float, Field(ge=1, le=65535)] = 255.0

    @property
    def channels(self) -> int:
        """How many values a pixel has."""
        return 1 if self.color == "gray" else 3

    @field_validator("resize", "crop", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> InputSpec:
        if self.interpolation not in FILTERS:
            raise ValueError(
                f"interpolation {self.interpolation!r}: accepted are {', '.join(FILTERS)}"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            # An artifact of uint8 takes neither.
            if self.dtype != "uint8" and len(values) != self.channels:
                have = f"{self.color} has {self.channels}"
                raise ValueError(f"{name} has {len(values)} values, {have}")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        if not self.antialias and self.interpolation not in PLAIN_MODES:
            known = ", ".join(PLAIN_MODES)
            raise ValueError(f"antialias: false is there for interpolation {known} alone")
        if self.backend == "tensor" and not (self.antialias and self.interpolation in TENSOR_MODES):
            raise ValueError(
                f"backend: tensor is there for interpolation {' or '.join(TENSOR_MODES)} "
                "with antialias"
            )
        if self.letterbox is not None and not (isinstance(self.resize, tuple) and not self.crop):
            raise ValueError("letterbox needs resize: [height, width] and no crop")
        if self.letterbox is None and self.letterbox_position != "center":
            raise ValueError(
                "letterbox_position needs letterbox, the grey level around the picture"
            )
        return self


class WeightsSpec(Strict):
    """Where the state_dict is: a ``file``, or the name of ``torchvision``'s own weights.

    Both: a local file in the place of torchvision's, whose builder, preset and labels are used.
    """

    file: str | None = None
    torchvision: str | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _any(self) -> WeightsSpec:
        if self.file is None and self.torchvision is None:
            raise ValueError("name a 'file', or the entry of 'torchvision'")
        return self


class ArtifactSpec(Strict):
    """A ``file`` that somebody else exported, which is packed as it is."""

    file: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


class ClosenessSpec(Strict):
    """How close an artifact must be to eager; None takes the default of the precision.

    See ``handlers.closeness.Closeness``; ``tolerance`` is its ``outputs``. A task takes those that
    its answers are compared by.
    """

    tolerance: Annotated[float, Field(gt=0, lt=1)] | None = None
    answers: Annotated[float, Field(gt=0, lt=1)] | None = None
    overlap: Annotated[float, Field(gt=0, lt=1)] | None = None
    changed: Annotated[float, Field(gt=0, lt=1)] | None = None
    iou: Annotated[float, Field(gt=0, lt=1)] | None = None
    features: Annotated[float, Field(gt=0, lt=1)] | None = None

    def said(self) -> dict[str, float]:
        """The keys that have a value."""
        return self.model_dump(exclude_none=True, exclude=set(DEFAULTS))


class ParitySpec(ClosenessSpec):
    """How close the artifact must be, whatever its precision, and two hosts' golden scores.

    ``fp32``, ``bf16``, ``fp16`` and ``int8`` are of that precision alone, and go before what is
    said of all. ``fp32`` is also of the artifact in fp32 that one in few bits is made of, to which
    nothing else that is said here applies.
    """

    golden: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    fp32: ClosenessSpec = ClosenessSpec()
    bf16: ClosenessSpec = ClosenessSpec()
    fp16: ClosenessSpec = ClosenessSpec()
    int8: ClosenessSpec = ClosenessSpec()

    def of(self, precision: str) -> ClosenessSpec:
        """What was said of one precision alone."""
        own: ClosenessSpec = getattr(self, precision)
        return own

    def closeness(self, precision: str) -> Closeness:
        """What was said, over the precision's defaults."""
        return _closeness(precision, {**self.said(), **self.of(precision).said()})

    def own_limits(self, precision: str) -> str:
        """What was said of a precision, beside its default, for a message; "" where nothing was."""
        said = {key: (f"parity.{key}", value) for key, value in self.said().items()}
        own = self.of(precision).said()
        said |= {key: (f"parity.{precision}.{key}", value) for key, value in own.items()}
        usual = DEFAULTS[precision]
        return ", ".join(
            f"{name} {value:g} (default in {precision}: "
            f"{_shown(getattr(usual, _FIELDS.get(key, key)))})"
            for key, (name, value) in said.items()
            if key != "golden"
        )

    def exact(self) -> Closeness:
        """The same of the artifact in fp32 that one in few bits is made of."""
        return _closeness("fp32", self.fp32.said())


def _shown(limit: float | None) -> str:
    return "none" if limit is None else f"{limit:g}"


def _closeness(precision: str, said: dict[str, float]) -> Closeness:
    return replace(DEFAULTS[precision], **{_FIELDS.get(k, k): value for k, value in said.items()})


class CalibrationSpec(Strict):
    """Pictures whose activations give int8 its ranges: ``count`` of ``folder``, drawn by ``seed``.

    ``keep_fp32`` layers with the largest error stay in floating point; "auto" as many as it takes
    to pass the gate of ``accuracy``.
    """

    folder: str
    count: Annotated[int, Field(ge=1, le=10_000)] = 100
    seed: Annotated[int, Field(ge=0)] = 0
    keep_fp32: Annotated[int, Field(ge=0)] | Literal["auto"] = 0


class AccuracySpec(Strict):
    """The metric that the artifact must keep on ``folder``: at most ``drop`` below eager's fp32.

    Without labels in the folder (see ``docs/precision.md``) eager's own answers are the truth; an
    artifact that others exported has no eager, so it needs labels, and no ``drop``.
    """

    folder: str
    drop: Annotated[float, Field(ge=0, le=1)] = 0.01
    count: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0


class ServingSpec(Strict):
    """What becomes ``model-config.yaml`` and the worker's ``Limits``.

    Delays are in milliseconds, timeouts in seconds. ``cores`` are those of the host that will serve
    (default: this machine's); ``threads`` 0 shares them among the workers, of which each has one.
    """

    workers: Annotated[int, Field(ge=1, le=256)] = Limits.workers
    threads: Annotated[int, Field(ge=0, le=256)] = Limits.threads
    cores: Annotated[int, Field(ge=1)] | None = None
    device: Literal["auto", "cpu", "gpu"] = Limits.device
    batch_size: Annotated[int, Field(ge=1, le=256)] = Limits.batch_size
    # TorchServe turns 0 into 100 ms.
    max_batch_delay: Annotated[int, Field(ge=1, le=60_000)] = 1
    response_timeout: Annotated[int, Field(ge=1)] = 60
    startup_timeout: Annotated[int, Field(ge=1)] = 300
    queue_size: Annotated[int, Field(ge=1)] = 200
    max_pixels: Annotated[int, Field(ge=1)] = Limits.max_pixels
    max_pictures: Annotated[int, Field(ge=1)] = Limits.max_pictures
    log_requests: bool = Limits.log_requests

    @model_validator(mode="after")
    def _fits(self) -> ServingSpec:
        cores = self.cores or usable()
        # With 0 each worker has its share of them, and never less than one.
        threads = max(self.threads, 1)
        if self.workers * threads > cores:
            lower = "lower one, leave threads 0" if threads > 1 else "lower workers"
            raise ValueError(
                f"{self.workers} workers x {threads} thread{'s' * (threads > 1)} fight for {cores} "
                f"cores: {lower}, or say the serving host's 'cores'"
            )
        if self.queue_size < self.batch_size:
            raise ValueError("queue_size is smaller than batch_size: no batch would ever be full")
        return self

    def limits(self) -> Limits:
        """What a worker keeps to."""
        return Limits(**{each.name: getattr(self, each.name) for each in fields(Limits)})

    def model_config_yaml(self) -> str:
        """TorchServe's ``model-config.yaml``; both worker counts, or it takes one per core."""
        config: dict[str, int | str] = {
            "minWorkers": self.workers,
            "maxWorkers": self.workers,
            "batchSize": self.batch_size,
            "maxBatchDelay": self.max_batch_delay,
            "responseTimeout": self.response_timeout,
            "startupTimeout": self.startup_timeout,
            "jobQueueSize": self.queue_size,
        }
        if self.device != "auto":
            config["deviceType"] = self.device
        return yaml.safe_dump(config, sort_keys=True)
