"""Command line options that change a model file's keys, for all commands that build."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from handlers import plugins
from handlers.closeness import DEFAULTS
from handlers.errors import SpecError

if TYPE_CHECKING:
    from marsmith.spec import ModelSpec

MODELS, STORE = Path("models"), Path("model-store")
AUTO = "auto"
# In the place of an archive, what it was exported from.
EAGER = "eager"
# build_mar.sh says here where its caller stands: paths on the command line are relative to that.
CALLER = "MARSMITH_CALLER"
# For helps.
TASKS, RUNTIMES = (", ".join(plugins.names(kind)) for kind in ("tasks", "runtimes"))
PRECISIONS = ", ".join(DEFAULTS)
Command = TypeVar("Command", bound=Callable[..., Any])
# Of a model file's ``input`` what says together which part of a picture is seen, and how large.
SHAPE = ("resize", "crop", "letterbox")
# Options that are keys of ``input``; the last three are of an artifact that others exported.
INPUT = (
    "color",
    *SHAPE,
    "letterbox_position",
    "interpolation",
    "antialias",
    "backend",
    "mean",
    "std",
    "layout",
    "dtype",
    "scale",
)


def _numbers(kind: Callable[[str], Any], single: bool) -> Callable[..., Any]:
    """Reads one number (where ``single``), or several with commas between."""

    def read(context: click.Context, option: click.Parameter, text: str | None) -> Any:
        if text is None:
            return None
        try:
            values = [kind(part) for part in text.split(",")]
        except ValueError as error:
            raise click.BadParameter(f"{text!r}: write numbers with commas between") from error
        return values[0] if single and len(values) == 1 else values

    return read


_OPTIONS = [
    click.option(
        "--weights", type=click.Path(path_type=Path), help="A state_dict instead of the spec's."
    ),
    click.option(
        "--samples", type=click.Path(path_type=Path), help="Folder of pictures to compare on."
    ),
    click.option(
        "--calibrate", type=click.Path(path_type=Path), help="Pictures to take int8's ranges from."
    ),
    click.option(
        "--calibrate-count",
        type=click.IntRange(min=1),
        help="How many of them; others of the folder can measure.",
    ),
    click.option(
        "--evaluate", type=click.Path(path_type=Path), help="Pictures to measure accuracy on."
    ),
    click.option("--max-drop", type=float, help="Largest loss of the metric: 0.01 is one point."),
    click.option("--keep-fp32", help="How many of the worst layers int8 leaves in fp32, or auto."),
]
_CHANNELS = "Per channel, of pixels from 0 to 1; of an artifact's / --scale."
_INPUT_OPTIONS = [
    click.option("--resize", callback=_numbers(int, True), help="Shorter side, or HEIGHT,WIDTH."),
    click.option(
        "--crop", callback=_numbers(int, True), help="Centre crop: side, or HEIGHT,WIDTH."
    ),
    click.option("--mean", callback=_numbers(float, False), help=_CHANNELS),
    click.option("--std", callback=_numbers(float, False), help=_CHANNELS),
    click.option("--interpolation", help="nearest, bilinear, bicubic or lanczos."),
    click.option("--color", help="rgb, bgr or gray."),
    click.option(
        "--antialias/--no-antialias", default=None, help="Smooth when shrinking, or as cv2."
    ),
    click.option("--backend", help="Whose resize: pil (exact to Pillow) or tensor (faster)."),
    click.option("--letterbox", type=int, help="Keep the shape in --resize; grey level around it."),
    click.option("--letterbox-position", help="Where the picture lies in it: center or top-left."),
]


def model_options(command: Command) -> Command:
    """Add the options to a click command."""
    return _with(_OPTIONS, command)


def input_options(command: Command) -> Command:
    """Add those that say what becomes of a picture before it is the network's input."""
    return _with(_INPUT_OPTIONS, command)


def _with(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def chosen_options(command: Command) -> Command:
    """Add the options that choose among all pairs of runtime and precision."""
    for name, plural, values in (
        ("--precision", "precisions", PRECISIONS),
        ("--runtime", "runtimes", RUNTIMES),
    ):
        words = f"Only these; repeatable: {values}."
        command = click.option(name, plural, multiple=True, help=words)(command)
    return command


def caller() -> Path:
    """The folder that paths on the command line are relative to."""
    return Path(os.environ.get(CALLER, ""))


def model_file(name: str, here: Path) -> Path | None:
    """The model file of a name or a path; None where there is none."""
    path = here / name if name.endswith((".yaml", ".yml")) else MODELS / f"{name}.yaml"
    return path if path.is_file() else None


def place(path: Path, root: Path) -> str:
    """A path as a model file has it: relative to the project folder, absolute outside of it."""
    path, root = path.resolve(), root.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def overrides(given: dict[str, Any], here: Path) -> dict[str, Any]:
    """Command line options as keys of a model file."""
    said = {key: given.get(key) for key in ("version", "runtime", "precision")}
    keys = {key: value for key, value in said.items() if value not in (None, AUTO)}
    if given.get("runtime") == AUTO and "precision" in keys:
        # That of the file may not compute in it; which one it will be is not known yet.
        names = plugins.names("runtimes")
        able = [one for one in names if keys["precision"] in plugins.load_runtime(one).precisions]
        keys |= {"runtime": able[0]} if able else {}
    keys |= _measured(given, here)
    if given["samples"]:
        keys["samples"] = place(here / given["samples"], Path.cwd())
    if given["weights"]:
        keys["weights"] = {"file": place(here / given["weights"], Path.cwd())}
    if said := input_said(given):
        keys["input"] = said
    return keys


def input_said(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``input`` that options say."""
    return {key: given[key] for key in INPUT if given.get(key) is not None}


def as_option(key: str) -> str:
    """What the command line calls a key of a model file."""
    return f"--{key.replace('_', '-')}"


def _measured(given: dict[str, Any], here: Path) -> dict[str, Any]:
    """The keys ``calibration`` and ``accuracy``, where options speak of them."""
    keys: dict[str, Any] = {"calibration": {}, "accuracy": {}}
    if given["calibrate"]:
        keys["calibration"]["folder"] = place(here / given["calibrate"], Path.cwd())
    if given["calibrate_count"] is not None:
        keys["calibration"]["count"] = given["calibrate_count"]
    if given["keep_fp32"]:
        kept = given["keep_fp32"]
        keys["calibration"]["keep_fp32"] = int(kept) if kept.isdecimal() else kept
    if given["evaluate"]:
        keys["accuracy"]["folder"] = place(here / given["evaluate"], Path.cwd())
    if given["max_drop"] is not None:
        keys["accuracy"]["drop"] = given["max_drop"]
    return {key: value for key, value in keys.items() if value}


def check_pictures(spec: ModelSpec, given: dict[str, Any]) -> None:
    """Raise SpecError for pictures to calibrate with and none to measure with, for commands that
    would leave out int8 then."""
    if given["calibrate"] and spec.accuracy is None:
        raise SpecError("--calibrate is for int8, which needs --evaluate DIR, too")


def check_precisions(given: dict[str, Any], precisions: Iterable[str]) -> None:
    """Raise SpecError for options of int8 where nothing of ``precisions`` is."""
    asked = [given["calibrate"], given["keep_fp32"], given["calibrate_count"]]
    if any(asked) and "int8" not in (found := dict.fromkeys(precisions)):
        raise SpecError(
            "--calibrate, --calibrate-count and --keep-fp32 are for --precision int8, and this is "
            f"{', '.join(found)}"
        )


def checked(spec: ModelSpec, given: dict[str, Any]) -> ModelSpec:
    """The spec with ``--method``, unless options were given that it has no use for."""
    check_precisions(given, [spec.precision])
    return _with_method(spec, given) if given["method"] else spec


def _with_method(spec: ModelSpec, given: dict[str, Any]) -> ModelSpec:
    """The spec with ``--method`` among its runtime's options, or of those that may be chosen."""
    if spec.artifact:
        raise SpecError(
            f"--method is how a network becomes TorchScript, and {Path(spec.artifact.file).name} "
            "was exported by others: leave it out"
        )
    own, said = spec.runtime_options, {"method": given["method"]}
    runtimes = {name: plugins.load_runtime(name) for name in plugins.names("runtimes")}
    able = [name for name, runtime in runtimes.items() if "method" in runtime.options]
    if spec.runtime in able:
        return spec.model_copy(update={"runtime_options": {**own, **said}})
    known = " or ".join(able)
    if given["runtime"] != AUTO:
        raise SpecError(
            f"--method is of runtime {known}, and this builds for {spec.runtime}: add --runtime "
            f"{known}"
        )
    if not (tried := [name for name in able if spec.precision in runtimes[name].precisions]):
        raise SpecError(
            f"--method is of runtime {known}, which does not compute in {spec.precision}: leave it "
            "out"
        )
    named = {name: {**own.get(name, {}), **said} for name in tried}
    return spec.model_copy(update={"runtime_options": {**own, **named}})
