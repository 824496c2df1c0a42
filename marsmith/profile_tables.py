"""A model's profile as tables for a person."""

from __future__ import annotations

from itertools import takewhile

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from marsmith.artifacts import ArchiveCost
from marsmith.profiling import Layer, Profile
from marsmith.spec import ModelSpec


def show(
    console: Console,
    spec: ModelSpec,
    counted: tuple[list[int], Profile] | None,
    listed: list[ArchiveCost],
    top: int,
) -> None:
    """Print totals, kinds of layers, the ``top`` layers and the archives.

    ``counted`` is the input's shape (N, H, W, C) and the profile at that shape, where there is one.
    """
    console.print(
        f"[bold]{spec.name}[/] ({spec.task}, {spec.architecture or 'others exported it'})"
    )
    if counted is not None:
        shape, profile = counted
        _totals(console, shape, profile)
        console.print(_kinds(profile))
        if top:
            console.print(_layers(profile, top))
    if listed:
        console.print(_archives(listed))
        for each in listed:
            if each.refused:
                console.print(f"{each.file}: {each.refused}", markup=False, soft_wrap=True)


def _totals(console: Console, shape: list[int], profile: Profile) -> None:
    count, height, width, channels = shape
    pictures = "picture" if count == 1 else "pictures"
    weights = _megabytes(profile.weight_bytes)
    peak = _megabytes(profile.peak_activation_bytes)
    total = _megabytes(profile.total_activation_bytes)
    console.print(
        f"  input          {count} {pictures} of {height} x {width} x {channels}\n"
        f"  parameters     {profile.parameters:,} ({weights} with buffers)\n"
        f"  multiply-adds  {profile.multiply_adds:,} ({2e-9 * profile.multiply_adds:.2f} GFLOPs)\n"
        f"  activations    {peak} at most at one time, {total} in all"
    )


def _kinds(profile: Profile) -> Table:
    table = _table("kind of layer", "layers", "parameters", "", "multiply-adds", "")
    for kind, each in profile.kinds().items():
        table.add_row(kind, str(each.calls), *_shares(each, profile))
    return table


def _layers(profile: Profile, top: int) -> Table:
    ranked = sorted(profile.layers, key=lambda each: -each.multiply_adds)[:top]
    prefix = _prefix([each.name for each in profile.layers])
    table = _table(f"layer of {prefix}", "kind", "output", "parameters", "", "multiply-adds", "")
    for each in ranked:
        output = " x ".join(map(str, each.output))
        name = each.name.removeprefix(f"{prefix}.")
        table.add_row(name, each.kind, output, *_shares(each, profile))
    return table


def _prefix(names: list[str]) -> str:
    """The module that all of these lie in."""
    parts = zip(*(name.split(".") for name in names), strict=False)
    columns = takewhile(lambda column: len(set(column)) == 1, parts)
    return ".".join(column[0] for column in columns)


def _shares(layer: Layer, profile: Profile) -> tuple[str, str, str, str]:
    return (
        f"{layer.parameters:,}",
        _share(layer.parameters, profile.parameters),
        f"{layer.multiply_adds:,}",
        _share(layer.multiply_adds, profile.multiply_adds),
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _archives(listed: list[ArchiveCost]) -> Table:
    table = _table("archive", "runtime", "artifact", "archive", "import", "load", "resident")
    for each in listed:
        times = [
            "" if value is None else f"{value:.1f} s" for value in (each.import_s, each.load_s)
        ]
        resident = "" if each.resident_bytes is None else _megabytes(each.resident_bytes)
        table.add_row(
            each.file,
            f"{each.runtime} {each.precision}",
            _megabytes(each.artifact_bytes),
            _megabytes(each.archive_bytes),
            *(["[red]refused[/]", ""] if each.refused else times),
            resident,
        )
    return table


def _table(*names: str) -> Table:
    """A table whose columns of figures are to the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(names):
        text = number == 0 or name in ("kind", "output", "runtime")
        table.add_column(name, justify="left" if text else "right", no_wrap=number > 0)
    table.columns[0].overflow = "fold"
    return table


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
