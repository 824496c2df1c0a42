"""A model's YAML file: everything a build needs to know, checked before anything runs.

Paths are relative to the project folder. TorchServe ignores mistakes in a model's configuration,
so unknown keys, wrong types and impossible values are refused here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from handlers import plugins
from handlers.closeness import DEFAULTS
from handlers.device import KINDS
from handlers.errors import LoadError, SpecError, one_line
from handlers.foreign import meaning_of
from handlers.options import between, within
from handlers.runtimes import Runtime
from handlers.task import TaskHandler
from marsmith.archive import model_name
from marsmith.model_options import MODELS
from marsmith.samples import DEFAULT as SAMPLES
from marsmith.spec_parts import (
    AccuracySpec,
    ArtifactSpec,
    CalibrationSpec,
    InputSpec,
    ParitySpec,
    ServingSpec,
    Strict,
    WeightsSpec,
)

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}
_INT8 = (
    "int8 needs calibration.folder, pictures to take its ranges from (--calibrate DIR), and "
    "accuracy.folder, other or the same pictures to measure the loss on (--evaluate DIR)"
)


class ModelSpec(Strict):
    """One servable model. ``labels`` is a list, a file, or None for those of torchvision's weights.

    The model is an ``architecture`` with ``weights``, or an ``artifact`` whose ``outputs`` say what
    it gives (see ``handlers.foreign.Contract``). ``input`` None takes the preset of torchvision's
    weights. ``decode`` are the task's settings
    fixed in the exported module, ``defaults`` the request options' defaults, ``samples`` a folder
    of pictures for parity and the golden requests. ``runtime_options`` are those of ``runtime``,
    and under the name of a runtime those that it has where it is chosen. ``calibration`` is what
    precision int8 takes its ranges from, ``accuracy`` what the artifact is measured on beside fp32.
    ``chosen`` is what ``--runtime auto`` found. ``default`` marks what a plain ``./build_mar.sh``
    builds.
    """

    name: Annotated[str, AfterValidator(model_name)]
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
    precision: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    calibration: CalibrationSpec | None = None
    accuracy: AccuracySpec | None = None
    decode: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    parity: ParitySpec = ParitySpec()
    samples: str = SAMPLES
    serving: ServingSpec = ServingSpec()
    chosen: dict[str, Any] = {}
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
        _check_options(self.runtime_options, self.runtime)
        able = plugins.load_runtime(self.runtime).devices
        if self.serving.device != "auto" and KINDS[self.serving.device] not in able:
            raise ValueError(
                f"serving.device {self.serving.device}: runtime {self.runtime} runs on "
                f"{' and '.join(able)} alone"
            )
        if self.precision not in plugins.load_runtime(self.runtime).precisions:
            known = ", ".join(plugins.load_runtime(self.runtime).precisions)
            raise ValueError(
                f"runtime {self.runtime} does not compute in {self.precision}: accepted are {known}"
            )
        if self.precision == "int8" and not (self.calibration and self.accuracy):
            raise ValueError(_INT8)
        task = plugins.load_task(self.task)
        own = task.settled is not TaskHandler.settled
        bounds = task.decode_bounds
        _check_values("decode", self.decode, task.decode_settings, bounds, nulls=own)
        read = {"tolerance" if task.continuous else "answers", *task.compared_by}
        # Of what loops some runtimes get the first half.
        read |= {"features"} if task.loops else set()
        _check_keys(f"parity of task {self.task}", self.parity.said(), {"golden", *read})
        for each in DEFAULTS:
            _check_keys(f"parity.{each} of task {self.task}", self.parity.of(each).said(), read)
        if self.input is not None and self.input.crop is not None and not task.crops:
            raise ValueError(
                f"input.crop: task {self.task} answers for every pixel of a picture, and a crop "
                "leaves some out: say resize, as one number or as [height, width], alone"
            )
        return self

    @model_validator(mode="after")
    def _made(self) -> ModelSpec:
        given = self.model_fields_set
        theirs = {"layout", "dtype", "scale"}
        if self.artifact is not None:
            ours = {"architecture", "arguments", "weights", "decode", "precision"}
            if ours := (ours | {"calibration"}) & given:
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
        count = self.arguments.get("num_classes", 1)
        # The arguments of a network of one's own may mean anything.
        if self.architecture.startswith("torchvision:") and (type(count) is not int or count < 1):
            raise ValueError(
                f"arguments.num_classes (--num-classes): {count!r:.60} is not how many classes "
                "there are: write a whole number from 1"
            )
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The options of its runtime: those without a name, and before them those with its name."""
        own: dict[str, Any] = _named(self.runtime_options, self.runtime).get(self.runtime, {})
        return own

    def on(self, runtime: str) -> ModelSpec:
        """The same model on a runtime, with the options that the file has for it."""
        if runtime == self.runtime:
            return self
        named, _ = parted(self.runtime_options)
        return self.model_copy(update={"runtime": runtime, "runtime_options": named})


def _check_foreign(spec: ModelSpec) -> None:
    """What must be said of an artifact of others, for nothing in it tells; raises ValueError."""
    if spec.accuracy and "drop" in spec.accuracy.model_fields_set:
        raise ValueError(
            "accuracy.drop (--max-drop): not for an artifact of others, for there is no fp32 to "
            "compare it with; its metric on accuracy.folder is measured and recorded"
        )
    if spec.input is None:
        raise ValueError("input: say layout, dtype, color, resize, mean and std of the artifact")
    said = {"mean", "std"} & spec.input.model_fields_set
    if spec.input.dtype != "uint8" and len(said) < 2:
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
    if spec.runtime not in (able := runtimes_for(suffix)):
        raise ValueError(
            f"runtime {spec.runtime} loads no {suffix} file of others; those that do: "
            f"{', '.join(able) or 'none'}{renaming(suffix)}"
        )


def renaming(suffix: str) -> str:
    """What to do with an artifact of others of such a name, which no runtime takes."""
    if suffix not in {each.suffix for each in _runtimes().values() if each.needs_source}:
        return ""
    return (
        ": rename it .pt if it is TorchScript; a state_dict goes with its network, --arch with "
        "--weights, or architecture and weights in YAML"
    )


def whole(file: str, root: Path) -> str:
    """Where a path of a model file leads, for errors; ``root`` is the project folder."""
    if Path(file).is_absolute():
        return file
    return f"{root / file} (paths in a model file are relative to {root})"


def runtimes_for(suffix: str) -> list[str]:
    """Names of the runtimes that serve artifacts of others which end in ``suffix``."""
    return [name for name, runtime in foreign_runtimes().items() if runtime.suffix == suffix]


def foreign_runtimes() -> dict[str, type[Runtime]]:
    """The runtimes that serve artifacts of others, by their names."""
    return {name: each for name, each in _runtimes().items() if not each.needs_source}


def _runtimes() -> dict[str, type[Runtime]]:
    return {name: plugins.load_runtime(name) for name in plugins.names("runtimes")}


def parted(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of ``runtime_options`` what is said for runtimes by their names, and what has no name."""
    names = plugins.names("runtimes")
    named = {key: value for key, value in options.items() if key in names}
    return named, {key: value for key, value in options.items() if key not in named}


def _named(options: dict[str, Any], runtime: Any) -> dict[str, Any]:
    """``runtime_options`` by the names of runtimes; those without a name are of ``runtime``."""
    named, flat = parted(options)
    if not flat or runtime not in plugins.names("runtimes"):
        return named
    own = named.get(runtime, {})
    # What is no mapping is left for the checks to name.
    return {**named, runtime: {**own, **flat} if isinstance(own, dict) else own}


def _check_options(options: dict[str, Any], runtime: str) -> None:
    named, flat = parted(options)
    _check_keys("runtime_options", flat, plugins.load_runtime(runtime).options)
    for name, given in sorted(named.items()):
        where = f"runtime_options.{name}"
        if not isinstance(given, dict):
            raise ValueError(f"{where} is {given!r:.60}: write a mapping of its options")
        _check_keys(where, given, plugins.load_runtime(name).options)


def _check_keys(where: str, given: dict[str, Any], accepted: Any) -> None:
    if mistakes := _unknown(where, given, accepted):
        raise ValueError("; ".join(mistakes))


def _check_values(
    where: str,
    given: dict[str, Any],
    defaults: Mapping[str, Any],
    bounds: Mapping[str, tuple[float | None, float | None]],
    nulls: bool,
) -> None:
    """Keys of ``defaults`` and values of their types: a whole number does for any number.

    A default of None is of a number that the network has itself, and ``nulls`` says that all may
    be. ``bounds`` are the least and the most of a key. Raises ValueError with all mistakes.
    """
    mistakes = _unknown(where, given, defaults)
    for key, value in given.items():
        if key not in defaults:
            continue
        default, ends = defaults[key], bounds.get(key, (None, None))
        kind = float if default is None else type(default)
        null = nulls or default is None
        if (value is None and null) or (_fits(value, kind) and within(value, *ends)):
            continue
        words = _WORDS.get(kind, kind.__name__) + between(*ends) + (" or null" if null else "")
        mistakes.append(f"{where}.{key} is {value!r:.60}: write {words}")
    if mistakes:
        raise ValueError("; ".join(mistakes))


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def _unknown(where: str, given: dict[str, Any], accepted: Any) -> list[str]:
    listing = ", ".join(sorted(accepted)) or "none here"
    return [
        f"{where} has the unknown key {key!r}: accepted are {listing}"
        for key in given
        if key not in accepted
    ]


def load(path: Path, overrides: dict[str, Any] | None = None) -> ModelSpec:
    """Read a model file; ``overrides`` replace its keys. Raises SpecError naming every mistake."""
    return merged(read(path), overrides, str(path))


def read(path: Path) -> dict[str, Any]:
    """The keys of a model file, unchecked; raises SpecError for what is no YAML mapping."""
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    # PyYAML meets a date of month 13 with ValueError, other tags of its own with more.
    except Exception as error:
        raise SpecError(f"{path}: cannot be read as YAML: {one_line(error)}") from error
    if not isinstance(fields, dict):
        raise SpecError(f"{path}: is not a YAML mapping of keys to values")
    return fields


def merged(fields: dict[str, Any], overrides: dict[str, Any] | None, where: str) -> ModelSpec:
    """The spec of a model file's ``fields`` with ``overrides``; see ``load``."""
    return parse(overlaid(fields, overrides), where)


def overlaid(fields: dict[str, Any], overrides: dict[str, Any] | None) -> dict[str, Any]:
    """The keys of a model file, or of what changes one, with ``overrides`` in their places."""
    fields = dict(fields)
    said, options = overrides or {}, fields.get("runtime_options")
    runtime = fields.get("runtime", ModelSpec.model_fields["runtime"].default)
    if said.get("runtime", runtime) != runtime and isinstance(options, dict):
        # Those without a name are of the runtime that the file says: it may be chosen yet.
        fields["runtime_options"] = _named(options, runtime)
    given = {**fields, **said}
    for key in ("calibration", "accuracy", "serving", "runtime_options"):
        # An option on the command line, or a profile, changes some of their values.
        if isinstance(fields.get(key), dict) and isinstance(given[key], dict):
            given[key] = {**fields[key], **given[key]}
    ours, theirs = fields.get("weights"), given.get("weights")
    same = given.get("architecture") == fields.get("architecture")
    if same and isinstance(ours, dict) and isinstance(theirs, dict) and "torchvision" in ours:
        # Another file does not change what made the network, its preset and its labels.
        given["weights"] = {"torchvision": ours["torchvision"], **theirs}
    return given


def defaults(root: Path, tell: Callable[[str], object] = lambda words: None) -> list[ModelSpec]:
    """The models that a plain ``./build_mar.sh`` builds: their weights are in the repository.

    Of the other files only that key is read: mistakes in one that nobody asks for stop nothing.
    ``tell`` hears of files that cannot be read, such as half-written ones: these are left out.
    """
    specs = []
    for path in sorted((root / MODELS).glob("*.yaml")):
        try:
            fields = read(path)
        except SpecError as error:
            tell(f"left out: {error}")
            continue
        if fields.get("default"):
            specs.append(merged(fields, None, str(path)))
    return specs


def weights_files(folder: Path) -> list[Path]:
    """The files of weights that the model files of ``folder`` name, whatever else is in those.

    A file that cannot be read names none: nobody has asked for its model.
    """
    found = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            given = read(path).get("weights")
        except SpecError:
            continue
        if isinstance(given, dict) and isinstance(given.get("file"), str):
            found.append(Path(given["file"]))
    return found


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


# What the command line calls keys that its other options want.
_FOLDERS = {
    ("calibration", "folder"): "--calibrate",
    ("accuracy", "folder"): "--evaluate",
}


def _message(mistake: Any) -> str:
    """A mistake with what came; our own messages say it already."""
    words, came = str(mistake["msg"]), mistake["input"]
    if mistake["type"] == "missing" and (option := _FOLDERS.get(mistake["loc"])):
        return f"which pictures? say it in the model file, or with {option} DIR"
    if words.startswith("Value error, "):
        return words.removeprefix("Value error, ")
    hint = " (YAML wants 1.0e-4 for 1e-4)" if re.fullmatch(r"\d+e-?\d+", str(came)) else ""
    return f"{words}, got {came!r:.60}{hint}"
