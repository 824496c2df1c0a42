"""A model's YAML file: everything a build needs to know, checked before anything runs.

Paths are relative to the project folder. TorchServe ignores mistakes in a model's configuration,
so unknown keys, wrong types and impossible values are refused here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from model_archiver.model_archiver_error import ModelArchiverError
from model_archiver.model_packaging_utils import ModelExportUtils
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from handlers import plugins
from handlers.errors import LoadError, SpecError
from handlers.foreign import meaning_of
from handlers.inputs import INTERPOLATIONS

MODELS = Path("models")
Side = Annotated[int, Field(ge=1, le=8192)]
Size = Side | tuple[Side, Side] | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class InputSpec(_Strict):
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
    layout: Literal["nchw", "nhwc"] = "nchw"
    dtype: Literal["float32", "uint8"] = "float32"
    scale: Annotated[float, Field(ge=1, le=65535)] = 255.0

    @field_validator("resize", "crop", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> InputSpec:
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation {self.interpolation!r}: accepted are {', '.join(INTERPOLATIONS)}"
            )
        channels = 1 if self.color == "gray" else 3
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise ValueError(f"{name} has {len(values)} values, {self.color} has {channels}")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        if not self.antialias and self.interpolation != "bilinear":
            raise ValueError("antialias: false is there for interpolation bilinear alone")
        if self.letterbox is not None and not (isinstance(self.resize, tuple) and not self.crop):
            raise ValueError("letterbox needs resize: [height, width] and no crop")
        return self


class WeightsSpec(_Strict):
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


class ArtifactSpec(_Strict):
    """A ``file`` that somebody else exported, which is packed as it is."""

    file: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


class ParitySpec(_Strict):
    """How far the artifact may be from eager: ``tolerance`` on outputs, ``golden`` on scores.

    None takes the default of the precision.
    """

    tolerance: Annotated[float, Field(gt=0, lt=1)] | None = None
    golden: Annotated[float, Field(gt=0, lt=0.5)] | None = None


class ServingSpec(_Strict):
    """What becomes ``model-config.yaml``. Delays in milliseconds, timeouts in seconds.

    ``cores`` are those of the host that will serve (default: this machine's); ``threads`` 0 shares
    them among the workers.
    """

    workers: Annotated[int, Field(ge=1, le=256)] = 1
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    cores: Annotated[int, Field(ge=1)] | None = None
    device: Literal["auto", "cpu", "gpu"] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=256)] = 8
    # TorchServe turns 0 into 100 ms.
    max_batch_delay: Annotated[int, Field(ge=1, le=60_000)] = 5
    response_timeout: Annotated[int, Field(ge=1)] = 60
    startup_timeout: Annotated[int, Field(ge=1)] = 300
    queue_size: Annotated[int, Field(ge=1)] = 200
    max_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    max_pictures: Annotated[int, Field(ge=1)] = 32

    @model_validator(mode="after")
    def _fits(self) -> ServingSpec:
        cores = self.cores or len(os.sched_getaffinity(0))
        if self.threads and self.workers * self.threads > cores:
            raise ValueError(
                f"{self.workers} workers x {self.threads} threads fight for {cores} cores: lower "
                "one, leave threads 0, or say the serving host's 'cores'"
            )
        if self.queue_size < self.batch_size:
            raise ValueError("queue_size is smaller than batch_size: no batch would ever be full")
        return self

    def model_config_yaml(self) -> str:
        """TorchServe's ``model-config.yaml``; both worker counts, or it takes one per core."""
        fields: dict[str, int | str] = {
            "minWorkers": self.workers,
            "maxWorkers": self.workers,
            "batchSize": self.batch_size,
            "maxBatchDelay": self.max_batch_delay,
            "responseTimeout": self.response_timeout,
            "startupTimeout": self.startup_timeout,
            "jobQueueSize": self.queue_size,
        }
        if self.device != "auto":
            fields["deviceType"] = self.device
        return yaml.safe_dump(fields, sort_keys=True)


def _model_name(name: str) -> str:
    try:
        # The archiver's pattern lets a newline at the end pass.
        ModelExportUtils.check_model_name_regex_or_exit(name.replace("\n", " "))
    except ModelArchiverError as error:
        raise ValueError(str(error).replace("\n", " ")) from error
    return name


class ModelSpec(_Strict):
    """One servable model. ``labels`` is a list, a file, or None for those of torchvision's weights.

    The model is an ``architecture`` with ``weights``, or an ``artifact`` whose ``outputs`` say what
    it gives (see ``handlers.foreign.Contract``). ``input`` None takes the preset of torchvision's
    weights. ``decode`` are the task's settings
    fixed in the exported module, ``defaults`` the request options' defaults, ``samples`` a folder
    of pictures for parity and the golden requests. ``default`` marks what a plain
    ``./build_mar.sh`` builds.
    """

    name: Annotated[str, AfterValidator(_model_name)]
    version: str = "1.0"
    task: str
    architecture: str = ""
    arguments: dict[str, Any] = {}
    weights: WeightsSpec = WeightsSpec.model_construct()
    artifact: ArtifactSpec | None = None
    outputs: dict[str, Any] = {}
    labels: list[str] | str | None = None
    input: InputSpec | None = None
    runtime: str = "torchscript"
    runtime_options: dict[str, Any] = {}
    precision: Literal["fp32"] = "fp32"
    decode: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    parity: ParitySpec = ParitySpec()
    samples: str = "samples/shapes"
    serving: ServingSpec = ServingSpec()
    licence: str = "unknown"
    description: str = ""
    default: bool = False

    @field_validator("version")
    @classmethod
    def _numeric(cls, version: str) -> str:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9}){0,3}", version):
            raise ValueError(f'{version!r} is not a version like "1.0" (quoted, digits and dots)')
        return version

    @field_validator("architecture")
    @classmethod
    def _origin(cls, architecture: str) -> str:
        if not re.fullmatch(
            r"torchvision:\w+|[^:]+\.py:\w+|[^:]*/[^:/]+:\w+(\.\w+)*", architecture
        ):
            raise ValueError(
                f'{architecture!r}: write "torchvision:resnet18" or "folder/my_model.py:Net", or '
                '"./folder/my_package:Net" for a folder with __init__.py'
            )
        return architecture

    @field_validator("outputs", mode="before")
    @classmethod
    def _named(cls, outputs: Any) -> Any:
        """``logits`` and ``[boxes, scores, labels]`` are short for names that the artifact has."""
        names = [outputs] if isinstance(outputs, str) else outputs
        listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
        return dict.fromkeys(names) if listed else outputs

    @model_validator(mode="after")
    def _plugins(self) -> ModelSpec:
        if self.task not in plugins.names("tasks"):
            known = ", ".join(plugins.names("tasks"))
            raise ValueError(f"task {self.task!r}: accepted are {known}")
        if self.runtime not in plugins.names("runtimes"):
            known = ", ".join(plugins.names("runtimes"))
            raise ValueError(f"runtime {self.runtime!r}: accepted are {known}")
        _check_keys(
            "runtime_options", self.runtime_options, plugins.load_runtime(self.runtime).options
        )
        if self.precision not in plugins.load_runtime(self.runtime).precisions:
            raise ValueError(f"runtime {self.runtime} does not compute in {self.precision}")
        _check_keys("decode", self.decode, plugins.load_task(self.task).decode_settings)
        return self

    @model_validator(mode="after")
    def _made(self) -> ModelSpec:
        given = self.model_fields_set
        theirs = {"layout", "dtype", "scale"}
        if self.artifact is not None:
            ours = {"architecture", "arguments", "weights", "decode", "precision"} & given
            if ours:
                raise ValueError(f"{', '.join(sorted(ours))}: not for an artifact of others")
            _check_foreign(self)
            return self
        for key in ("architecture", "weights"):
            if key not in given:
                raise ValueError(f"{key}: Field required, or an artifact that others exported")
        if "outputs" in given or (self.input and theirs & self.input.model_fields_set):
            raise ValueError(
                "outputs, input.layout, input.dtype and input.scale are of an artifact that others "
                "exported; here mean and std are for pixels from 0 to 1"
            )
        return self


def _check_foreign(spec: ModelSpec) -> None:
    """What must be said of an artifact of others, for nothing in it tells; raises ValueError."""
    if spec.input is None:
        raise ValueError("input: say layout, dtype, color, resize, mean and std of the artifact")
    said = {"mean", "std"} & spec.input.model_fields_set
    if spec.input.dtype == "float32" and len(said) < 2:
        raise ValueError(
            "input: say mean and std of the artifact ([0, 0, 0] and [1, 1, 1] where it has none)"
        )
    if spec.input.dtype == "uint8" and said | ({"scale"} & spec.input.model_fields_set):
        raise ValueError("input: mean, std and scale are not applied to dtype uint8")
    try:
        meaning = meaning_of(spec.outputs, plugins.load_task(spec.task).meanings)
    except LoadError as error:
        raise ValueError(str(error)) from error
    for key, value in spec.outputs.items():
        kinds = (str, type(None)) if key in meaning.names else (type(meaning.settings[key]),)
        if type(value) not in kinds:
            raise ValueError(f"outputs.{key}: {value!r:.60} is not of type {kinds[0].__name__}")
    suffix = Path(spec.artifact.file).suffix if spec.artifact else ""
    if suffix != plugins.load_runtime(spec.runtime).suffix:
        fitting = ", ".join(runtimes_for(suffix)) or "none"
        raise ValueError(f"runtime {spec.runtime} loads no {suffix} file; those that do: {fitting}")


def runtimes_for(suffix: str) -> list[str]:
    """Names of the runtimes whose artifacts end in ``suffix``."""
    return [
        name for name in plugins.names("runtimes") if plugins.load_runtime(name).suffix == suffix
    ]


def _check_keys(where: str, given: dict[str, Any], accepted: Any) -> None:
    for key in given.keys() - set(accepted):
        listing = ", ".join(sorted(accepted)) or "none here"
        raise ValueError(f"{where} has the unknown key {key!r}: accepted are {listing}")


def load(path: Path, overrides: dict[str, Any] | None = None) -> ModelSpec:
    """Read a model file; ``overrides`` replace its keys. Raises SpecError naming every mistake."""
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    # PyYAML meets a date of month 13 with ValueError, other tags of its own with more.
    except Exception as error:
        raise SpecError(
            f"{path}: cannot be read as YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(fields, dict):
        raise SpecError(f"{path}: is not a YAML mapping of keys to values")
    given = {**fields, **(overrides or {})}
    ours, theirs = fields.get("weights"), given.get("weights")
    same = given.get("architecture") == fields.get("architecture")
    if same and isinstance(ours, dict) and isinstance(theirs, dict) and "torchvision" in ours:
        # Another file does not change what made the network, its preset and its labels.
        given["weights"] = {"torchvision": ours["torchvision"], **theirs}
    plain = ModelSpec.model_fields["runtime"].default
    if given.get("runtime", plain) != fields.get("runtime", plain):
        # The file's options are those of the runtime that it names.
        given["runtime_options"] = (overrides or {}).get("runtime_options", {})
    return parse(given, str(path))


def defaults(root: Path) -> list[ModelSpec]:
    """The models that a plain ``./build_mar.sh`` builds: their weights are in the repository."""
    specs = [load(path) for path in sorted((root / MODELS).glob("*.yaml"))]
    return [spec for spec in specs if spec.default]


def parse(fields: dict[str, Any], where: str) -> ModelSpec:
    """Check the fields of a model file; raises SpecError naming every mistake."""
    try:
        return ModelSpec.model_validate(fields)
    except ValidationError as error:
        mistakes = [
            f"{'.'.join(map(str, each['loc'])) or 'model'}: {_message(each)}"
            for each in error.errors()
        ]
        raise SpecError(f"{where}: {' '.join('; '.join(mistakes).split())}") from error


def _message(mistake: Any) -> str:
    """A mistake with what came; our own messages say it already."""
    words, came = str(mistake["msg"]), mistake["input"]
    if words.startswith("Value error, "):
        return words.removeprefix("Value error, ")
    hint = " (YAML wants 1.0e-4 for 1e-4)" if re.fullmatch(r"\d+e-?\d+", str(came)) else ""
    return f"{words}, got {came!r:.60}{hint}"
