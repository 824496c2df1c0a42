"""Count a model's parameters, multiply-adds and memory, and time its archives' loading."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handlers.errors import SpecError
from marsmith.model_options import STORE
from marsmith.unused import said

if TYPE_CHECKING:
    from marsmith.artifacts import ArchiveCost
    from marsmith.profiling import Profile
    from marsmith.subject import Subject


def _size(context: click.Context, option: click.Parameter, text: str | None) -> Any:
    if text is None:
        return None
    sides = text.split(",")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise click.BadParameter(f"{text!r}: write HEIGHT,WIDTH, such as 224,224")
    return int(sides[0]), int(sides[1])


@click.command()
@click.argument("model")
@click.option("--weights", type=click.Path(path_type=Path), help="A state_dict; not needed.")
@click.option("--size", callback=_size, metavar="H,W", help="Input instead of the model's own.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Pictures.")
@click.option("--top", type=click.IntRange(0), default=10, show_default=True, help="Layers shown.")
@click.option("--store", type=click.Path(path_type=Path), default=STORE, show_default=True)
@click.option("--load/--no-load", default=True, help="Time the loading of archives.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with all layers.")
def command(
    model: str,
    weights: Path | None,
    size: tuple[int, int] | None,
    batch: int,
    top: int,
    store: Path,
    load: bool,
    as_json: bool,
) -> None:
    """Count what MODEL costs: a name (of models/ or torchvision), a YAML file or an archive.

    Multiply-adds are of the whole batch, and of matrix products, convolutions and attention alone.
    Activation memory is what operators allocate for their results in one eager run: at most at one
    time (peak), and in all (total). Weights are not needed, but a detector's heads depend on them.
    Archives of the model in the store are listed with their sizes and their worker's load time.
    """
    from marsmith import artifacts, subject, terminal
    from marsmith.profile_tables import show

    console = terminal.console()
    with console.status(model) as status, subject.find(model, store) as found:
        paths, unreadable = (
            ([found.path], []) if found.path else artifacts.of_model(found.spec.name, store)
        )
        counted = None
        # Of what others exported there is no network to count, only the archive.
        if found.spec.artifact is None or found.path is None:
            counted = _count(found, weights, size, batch)
        elif idle := said("weights", "size", "batch", "top"):
            raise SpecError(
                f"{idle}: {model} was exported by others, so that there is no network to count, "
                "only the archive to time: leave that out"
            )
        listed = []
        for path in paths:
            status.update(f"{model}: {path.name}")
            listed.append(artifacts.describe(path, load))
    for reason in unreadable:
        click.echo(f"left out: {reason}", err=True)
    if as_json:
        click.echo(json.dumps(_document(found, counted, listed), indent=1))
        return
    show(console, found.spec, counted, listed, top)


def _count(
    found: Subject, weights: Path | None, size: tuple[int, int] | None, batch: int
) -> tuple[list[int], Profile]:
    """The input's shape (N, H, W, C), and the profile at that shape."""
    import numpy as np
    import torch

    from marsmith import profiling

    module = found.network() if weights is None else found.trained(weights)
    images = np.stack([found.pixels(size)] * batch)
    return list(images.shape), profiling.profile(module, torch.from_numpy(images))


def _document(
    found: Subject, counted: tuple[list[int], Profile] | None, listed: list[ArchiveCost]
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "model": found.spec.name,
        "task": found.spec.task,
        "architecture": found.spec.architecture or None,
    }
    if counted is not None:
        shape, profile = counted
        document |= {"input": shape, **asdict(profile)}
        document["kinds"] = [
            {
                "kind": kind,
                "layers": each.calls,
                "parameters": each.parameters,
                "multiply_adds": each.multiply_adds,
            }
            for kind, each in profile.kinds().items()
        ]
    return document | {"archives": [each.to_json() for each in listed]}
