"""Build proven archives of models into the model store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from handlers.errors import SpecError

if TYPE_CHECKING:
    from marsmith.spec import ModelSpec

MODELS = Path("models")
# build_mar.sh says here where its caller stands: paths on the command line are relative to that.
CALLER = "MARSMITH_CALLER"


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


@click.command()
@click.argument("names", nargs=-1)
@click.option("--version", help="Version of the archive, such as 2.0.")
@click.option("--runtime", help="Runtime that serves the model, such as torchscript.")
@click.option("--precision", help="fp32, bf16, fp16 or int8, as the runtime can.")
@click.option(
    "--calibrate", type=click.Path(path_type=Path), help="Pictures to take int8's ranges from."
)
@click.option(
    "--evaluate", type=click.Path(path_type=Path), help="Pictures to measure accuracy on."
)
@click.option("--max-drop", type=float, help="Largest loss of the metric: 0.01 is one point.")
@click.option("--keep-fp32", help="How many of the worst layers int8 leaves in fp32, or auto.")
@click.option("--method", help="How TorchScript is made: trace or script.")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="A state_dict instead of the spec's."
)
@click.option(
    "--samples", type=click.Path(path_type=Path), help="Folder of pictures to compare on."
)
@click.option("--store", type=click.Path(path_type=Path), help="Default: model-store.")
@click.option("--force", is_flag=True, help="Replace an archive of the same name and version.")
@click.option("--missing", is_flag=True, help="Leave out what is in the store already.")
@click.option("--name", help="Build a model without a file of models/, under this name.")
@click.option("--task", help="What it does, such as image-classification.")
@click.option("--arch", help="torchvision:resnet18, my_model.py:Net or my_package:Net.")
@click.option("--arg", multiple=True, help="KEY=VALUE for the network's constructor; repeatable.")
@click.option("--num-classes", type=int, help="Short for --arg num_classes=N.")
@click.option("--artifact", type=click.Path(path_type=Path), help="A file that others exported.")
@click.option("--outputs", help="What that gives: logits, or boxes=dets,scores=conf,labels=ids.")
@click.option("--labels", type=click.Path(path_type=Path), help="File with one label a line.")
@click.option("--resize", callback=_numbers(int, True), help="Shorter side, or HEIGHT,WIDTH.")
@click.option("--crop", callback=_numbers(int, True), help="Centre crop: side, or HEIGHT,WIDTH.")
@click.option("--mean", callback=_numbers(float, False), help="Per channel, for pixels 0..1.")
@click.option("--std", callback=_numbers(float, False), help="Per channel, for pixels 0..1.")
@click.option("--interpolation", help="nearest, bilinear, bicubic or lanczos.")
@click.option("--color", help="rgb, bgr or gray.")
@click.option("--antialias/--no-antialias", default=None, help="Smooth when shrinking, or as cv2.")
@click.option("--letterbox", type=int, help="Keep the shape in --resize; grey level around it.")
@click.option("--layout", help="nchw or nhwc, of an artifact.")
@click.option("--dtype", help="float32 or uint8, of an artifact.")
@click.option("--scale", type=float, help="By which an artifact wants pixels divided, such as 255.")
@click.option("--save-yaml", type=click.Path(path_type=Path), help="Write a model file of it, too.")
@click.option("--list", "listing", is_flag=True, help="List the models that can be built.")
def command(
    names: tuple[str, ...], force: bool, missing: bool, listing: bool, **given: Any
) -> None:
    """Build archives of the named models (default: those whose weights are in this project).

    NAMES are files of models/ without .yaml, or paths of YAML files. A model of your own needs no
    file: give --name, --task, --labels and --arch with --weights, or --artifact.
    """
    if listing:
        _list()
        return
    from marsmith import own
    from marsmith.spec import defaults, load

    here = Path(os.environ.get(CALLER, ""))
    mine = [key for key in own.KEYS if given[key] not in (None, ())]
    if mine or given["save_yaml"]:
        if names:
            option = (mine or ["save_yaml"])[0].replace("_", "-")
            raise SpecError(f"--{option} makes a model without a file: leave out {names[0]}")
        _own(given, here, force)
        return
    paths = [_path(name, here) for name in names]
    paths = paths or [_path(spec.name, here) for spec in defaults(Path.cwd())]
    if missing:
        store, changes = _store(given, here), _overrides(given, here)
        paths = [path for path in paths if not _is_built(load(path, changes), store)]
    if not paths:
        return
    if len(paths) > 1:
        # TorchScript numbers its types per process: a process each keeps archives reproducible.
        arguments = [word for word in sys.argv[1:] if word not in names]
        for path in paths:
            done = subprocess.run(
                [sys.executable, "-m", "marsmith", *arguments, str(path.absolute())]
            )
            if done.returncode:
                sys.exit(done.returncode)
        return
    _build(_checked(load(paths[0], _overrides(given, here)), given), _store(given, here), force)


def _is_built(spec: ModelSpec, store: Path) -> bool:
    from marsmith.archive import file_name

    return (store / file_name(spec.name, spec.version)).is_file()


def _own(given: dict[str, Any], here: Path, force: bool) -> None:
    """Build a model that the options describe."""
    from marsmith import own
    from marsmith.spec import parse

    keys, notes = own.fields(given, here, Path.cwd())
    changes = _overrides({**given, "weights": None}, here)
    spec = parse({**keys, **changes}, "command line")
    for note in notes:
        print(note)
    _build(_checked(spec, given), _store(given, here), force)
    if given["save_yaml"]:
        own.save(spec, here / given["save_yaml"], force)
        print(f"  model file {given['save_yaml']}")


def _build(spec: ModelSpec, store: Path, force: bool) -> None:
    from marsmith.build import build

    console = Console(highlight=False)
    title = f"{spec.name} {spec.version}"
    with console.status(title) as status:
        built = build(
            spec, Path.cwd(), store, force, lambda stage: status.update(f"{title}: {stage}")
        )
    size = built.path.stat().st_size / 1e6
    reference = "itself, alone (there is no eager model)" if spec.artifact else "eager"
    console.print(
        f"[green]built[/] {built.path} ({size:.1f} MB, {spec.runtime} {spec.precision}"
        f"{', unchanged' if built.unchanged else ''})\n"
        f"  parity on {built.parity.pictures} pictures at batches {built.parity.batch_sizes}: "
        f"outputs within {built.parity.largest_difference:.1e} and scores within "
        f"{built.parity.largest_score_difference:.1e} of {reference} "
        f"(allowed {built.parity.tolerance:.0e})\n  sha256 {built.sha256}",
        soft_wrap=True,
    )
    if built.accuracy is not None:
        console.print(f"  {built.accuracy}", soft_wrap=True)
    for note in built.notes:
        console.print(f"  note: {note}", markup=False, soft_wrap=True)


def _store(given: dict[str, Any], here: Path) -> Path:
    return here / given["store"] if given["store"] else Path("model-store")


def _overrides(given: dict[str, Any], here: Path) -> dict[str, Any]:
    """Command line options as keys of a model file."""
    from marsmith.own import place

    keys = {
        key: given[key] for key in ("version", "runtime", "precision") if given[key] is not None
    }
    keys |= _measured(given, here)
    if given["samples"]:
        keys["samples"] = place(here / given["samples"], Path.cwd())
    if given["method"]:
        keys["runtime_options"] = {"method": given["method"]}
    if given["weights"]:
        keys["weights"] = {"file": place(here / given["weights"], Path.cwd())}
    return keys


def _measured(given: dict[str, Any], here: Path) -> dict[str, Any]:
    """The keys ``calibration`` and ``accuracy``, where options speak of them."""
    from marsmith.own import place

    keys: dict[str, Any] = {"calibration": {}, "accuracy": {}}
    if given["calibrate"]:
        keys["calibration"]["folder"] = place(here / given["calibrate"], Path.cwd())
    if given["keep_fp32"]:
        kept = given["keep_fp32"]
        keys["calibration"]["keep_fp32"] = int(kept) if kept.isdecimal() else kept
    if given["evaluate"]:
        keys["accuracy"]["folder"] = place(here / given["evaluate"], Path.cwd())
    if given["max_drop"] is not None:
        keys["accuracy"]["drop"] = given["max_drop"]
    return {key: value for key, value in keys.items() if value}


def _checked(spec: ModelSpec, given: dict[str, Any]) -> ModelSpec:
    """The spec, unless options were given that it has no use for."""
    if spec.precision != "int8" and (given["calibrate"] or given["keep_fp32"]):
        raise SpecError(
            f"--calibrate and --keep-fp32 are for --precision int8, and this is {spec.precision}"
        )
    if spec.accuracy is None and given["max_drop"] is not None:
        raise SpecError("--max-drop needs --evaluate DIR, the pictures to measure on")
    return spec


def _path(name: str, here: Path) -> Path:
    path = here / name if name.endswith((".yaml", ".yml")) else MODELS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in MODELS.glob("*.yaml")))
        raise SpecError(f"no model {name}: there is no {path}; known are {known}")
    return path


def _list() -> None:
    from marsmith.spec import load

    for path in sorted(MODELS.glob("*.yaml")):
        spec = load(path)
        print(f"{path.stem:40} {spec.task:22} {spec.description}")
