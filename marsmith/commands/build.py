"""Build proven archives of models into the model store."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from rich.console import Console

from handlers.errors import MarsmithError, SpecError
from marsmith import several
from marsmith.importing import for_good
from marsmith.model_options import (
    AUTO,
    INPUT,
    MODELS,
    PRECISIONS,
    RUNTIMES,
    STORE,
    TASKS,
    as_option,
    caller,
    checked,
    input_options,
    input_said,
    model_options,
    overrides,
)
from marsmith.unused import spelt

if TYPE_CHECKING:
    from marsmith.spec import ModelSpec

# The file of a command is imported when that runs. What follows may take seconds (torch) or, with
# --runtime auto, minutes.
_BEGUN = time.perf_counter()
# The folders of an absolute path: where something lay on the build machine does not travel.
_PLACE = re.compile(r"(?<![\w./~-])/(?:[^\s/:'\"]+/)+")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--version", help="Version of the archive, such as 2.0.")
@click.option(
    "--runtime",
    # As the files are named, too.
    callback=lambda context, option, name: name and name.replace("_", "-"),
    help=f"{RUNTIMES}; auto: the fastest here that passes parity.",
)
@click.option("--precision", help=f"{PRECISIONS}, as the runtime can.")
@click.option("--method", help="How TorchScript is made: trace or script.")
@model_options
@click.option("--profile", type=click.Path(path_type=Path), help="As `marsmith tune` found.")
@click.option("--store", type=click.Path(path_type=Path), help="Default: model-store.")
@click.option("--force", is_flag=True, help="Replace an archive of the same name and version.")
@click.option("--missing", is_flag=True, help="Leave out what is in the store already.")
@click.option("--name", help="Build a model without a file of models/, under this name.")
@click.option("--task", help=f"What it does: {TASKS}.")
@click.option("--arch", help="torchvision:resnet18, my_model.py:Net or my_package:Net.")
@click.option("--arg", multiple=True, help="KEY=VALUE for the network's constructor; repeatable.")
@click.option("--num-classes", type=int, help="Short for --arg num_classes=N.")
@click.option("--decode", multiple=True, help="KEY=VALUE of the task's decode; repeatable.")
@click.option("--artifact", type=click.Path(path_type=Path), help="A file that others exported.")
@click.option(
    "--outputs",
    help="What that gives: logits, probabilities, ids, or boxes=dets,scores=conf,labels=ids.",
)
@click.option("--labels", type=click.Path(path_type=Path), help="File with one label a line.")
@input_options
@click.option("--layout", help="nchw, nhwc, or without batch axis chw, hwc; of an artifact.")
@click.option("--dtype", help="float32, float16 or uint8, of an artifact.")
@click.option("--scale", type=float, help="What an artifact's pixels are divided by (255).")
@click.option("--save-yaml", type=click.Path(path_type=Path), help="Write a model file of it, too.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON, a line for each model.")
@click.option("--report", type=click.Path(path_type=Path), hidden=True)
@click.option("--list", "listing", is_flag=True, help="List the models that can be built.")
def command(
    names: tuple[str, ...],
    force: bool,
    missing: bool,
    listing: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Build archives of the named models (default: those whose weights are in this project).

    NAMES are files of models/ without .yaml, networks of torchvision, or paths of YAML files;
    --resize and the options beside it change their input. A model of your own needs no file: give
    --name, --task, --labels and --arch with --weights, or --artifact.
    """
    if listing:
        _list()
        return
    from marsmith import own
    from marsmith.spec import defaults

    here = caller()
    mine = [key for key in own.KEYS if given[key] not in (None, ())]
    if mine or given["save_yaml"]:
        if names:
            made = as_option((mine or ["save_yaml"])[0])
            raise SpecError(f"{made} makes a model without a file: leave out {names[0]}")
        if given["profile"]:
            raise SpecError("--profile is for models with a file: save one with --save-yaml first")
        _own(given, here, force, missing, as_json)
        return
    tell = partial(click.echo, err=True)
    if not names:
        if said := input_said(given):
            shown = ", ".join(map(as_option, said))
            raise SpecError(
                f"{shown}: of which model? Name it, or make one of your own with --name, --task, "
                "--labels and --arch or --artifact"
            )
        names = tuple(spec.name for spec in defaults(Path.cwd(), tell))
    # Of several each has a process of its own, which tells.
    specs = {name: _spec(name, given, here, tell if len(names) == 1 else None) for name in names}
    if missing:
        store = _store(given, here)
        specs = {name: spec for name, spec in specs.items() if not _is_built(spec, store)}
    if not specs:
        return
    if len(specs) > 1:
        # A process each, for runtimes that are reproducible "by-process". They ask no more what is
        # missing: another build may have made it meanwhile.
        options = [word for word in _options_given() if word != "--missing"]
        _several([sys.executable, "-m", "marsmith", "build", *options], specs, as_json)
        return
    (spec,) = specs.values()
    with several.reporting(given["report"], spec, as_json):
        told = _build(_chosen(checked(spec, given), given), _store(given, here), force, as_json)
        if given["report"]:
            given["report"].write_text(json.dumps(told), "utf-8")


def _several(command: list[str], specs: dict[str, ModelSpec], as_json: bool) -> None:
    """Build each, whatever becomes of the others; exit status 1 where one has failed."""
    start, told = time.perf_counter(), []
    for found in several.build_each(command, specs):
        told.append(found)
        if as_json and "problem" in found:
            print(json.dumps(found), flush=True)
    seconds = time.perf_counter() - start
    several.print_table(Console(highlight=False, stderr=as_json), told, seconds)
    if any("problem" in found for found in told):
        sys.exit(1)


def _options_given() -> list[str]:
    """The options on the command line, of those that go with names of models: one value each."""
    context = click.get_current_context()
    words = []
    for each in context.command.params:
        source = context.get_parameter_source(str(each.name))
        if isinstance(each, click.Option) and source is ParameterSource.COMMANDLINE:
            words.append(_word(each, context.params[str(each.name)]))
    return words


def _word(given: click.Option, value: Any) -> str:
    """An option with its value as one word of a command line."""
    if given.is_flag:
        return spelt(given, value)
    return f"{given.opts[0]}={','.join(map(str, value)) if isinstance(value, list) else value}"


def _spec(
    name: str,
    given: dict[str, Any],
    here: Path,
    tell: Callable[[str], object] | None = None,
) -> ModelSpec:
    """A model's spec with the keys of ``--profile`` and, over them, those of other options.

    ``tell`` hears what ``named.load`` has to say of them.
    """
    from marsmith import host_profile
    from marsmith.named import load
    from marsmith.spec import overlaid

    if not given["profile"]:
        return load(name, here, overrides(given, here), tell)
    if given["runtime"] == AUTO:
        raise SpecError("--runtime auto and --profile both choose the runtime: give one of them")
    found = host_profile.overrides(here / given["profile"], load(name, here).name)
    said = overrides(given, here)
    if said.get("runtime", found.get("runtime")) != found.get("runtime"):
        # The profile's are of the runtime that it names.
        found.pop("runtime_options", None)
    return load(name, here, overlaid(found, said), tell)


def _is_built(spec: ModelSpec, store: Path) -> bool:
    from marsmith.archive import file_name

    return (store / file_name(spec.name, spec.version)).is_file()


def _own(given: dict[str, Any], here: Path, force: bool, missing: bool, as_json: bool) -> None:
    """Build a model that the options describe."""
    from marsmith import own
    from marsmith.spec import parse

    automatic = given["runtime"] == AUTO
    keys, notes = own.fields({**given, "runtime": None} if automatic else given, here, Path.cwd())
    # ``own.fields`` has read these.
    changes = overrides({**given, "weights": None, **dict.fromkeys(INPUT)}, here)
    spec, store = parse({**keys, **changes}, "command line"), _store(given, here)
    file = here / given["save_yaml"] if given["save_yaml"] else None
    with several.reporting(None, spec, as_json):
        spec = checked(spec, given)
        if file:
            own.check(None if automatic else spec, file, force)
        if not (missing and _is_built(spec, store)):
            for note in notes:
                print(note, file=sys.stderr)
            spec = _chosen(spec, given)
            _build(spec, store, force, as_json)
        elif file and automatic:
            raise SpecError(
                f"--save-yaml: {spec.name} {spec.version} is in the store already, so that "
                "--runtime auto chooses none: name its runtime, or leave out --missing"
            )
    if file:
        own.save(spec, file, force)
        print(f"  model file {given['save_yaml']}", file=sys.stderr)


def _chosen(spec: ModelSpec, given: dict[str, Any]) -> ModelSpec:
    """The spec, with the fastest runtime of this host where ``--runtime auto`` asks for it."""
    if given["runtime"] != AUTO:
        return spec
    from marsmith import trials
    from marsmith.terminal import telling
    from marsmith.trial_tables import print_table

    if spec.artifact is not None:
        raise SpecError("--runtime auto: an artifact of others runs in the runtime of its format")
    console = Console(stderr=True, highlight=False)
    pairs = trials.pairs(spec, [spec.precision])
    with tempfile.TemporaryDirectory() as store, console.status(spec.name) as status:
        batch = spec.serving.batch_size
        tell = telling(console, status.update)
        run = trials.run(spec, Path.cwd(), Path(store), pairs, tell, batch=batch)
        tried = list(run)
    print_table(console, spec, tried, batch)
    best = trials.best(tried)
    speed = f"{best.throughput:.0f} pictures/s at batch {batch}"
    console.print(f"--runtime auto: {best.runtime}, {speed}")
    record = {
        trial.runtime: _PLACE.sub("", trial.problem or f"{trial.throughput:.0f} pictures/s")
        for trial in tried
    }
    return spec.on(best.runtime).model_copy(update={"chosen": record})


def _build(spec: ModelSpec, store: Path, force: bool, as_json: bool) -> dict[str, Any]:
    """Build and tell of it; what is told as JSON values."""
    with for_good():
        from marsmith.build import build

    console = Console(highlight=False, stderr=as_json)
    title = f"{spec.name} {spec.version}"
    with console.status(title) as status:
        built = build(
            spec, Path.cwd(), store, force, lambda stage: status.update(f"{title}: {stage}")
        )
    told = {**built.to_json(), "seconds": round(time.perf_counter() - _BEGUN, 1)}
    if as_json:
        print(json.dumps(told))
        return told
    proof, size = built.proof, built.path.stat().st_size / 1e6
    console.print(
        f"[green]built[/] {built.path} ({size:.1f} MB, {told['runtime']} {told['precision']}, "
        f"{told['seconds']} s{', unchanged' if built.unchanged else ''})\n"
        f"  {proof.parity.words('eager')}\n  sha256 {built.sha256}",
        soft_wrap=True,
    )
    if proof.exact is not None:
        console.print(f"  in fp32, before: {proof.exact.words('eager')}", soft_wrap=True)
    if proof.accuracy is not None:
        console.print(f"  {proof.accuracy}", soft_wrap=True)
    elif spec.artifact:
        unknown = "no PyTorch model says whether its answers are right: --evaluate measures that"
        console.print(f"  {unknown}", soft_wrap=True)
    for note in built.notes:
        console.print(f"  note: {note}", markup=False, soft_wrap=True)
    return told


def _store(given: dict[str, Any], here: Path) -> Path:
    return here / given["store"] if given["store"] else STORE


def _list() -> None:
    """Raises SpecError for files that are wrong, when all others are listed."""
    from marsmith import named
    from marsmith.spec import load

    files, mistakes = {path.stem: path for path in sorted(MODELS.glob("*.yaml"))}, []
    for name, path in files.items():
        try:
            spec = load(path)
        except MarsmithError as error:
            mistakes.append(str(error))
            continue
        print(f"{name:40} {spec.task:22} {spec.description}")
    others = {name: task for name, task in named.torchvision_names().items() if name not in files}
    print("\nAnd by their names, with torchvision's weights, preprocessing and labels:")
    for task in sorted({*others.values()}):
        print(f"  {task}: {', '.join(name for name in others if others[name] == task)}")
    if mistakes:
        raise SpecError("; ".join(mistakes))
