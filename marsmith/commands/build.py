"""Build proven archives of models into the model store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from handlers.errors import SpecError

MODELS = Path("models")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--version", help="Version of the archive, such as 2.0.")
@click.option("--runtime", help="Runtime that serves the model, such as torchscript.")
@click.option("--method", help="How TorchScript is made: trace or script.")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="A state_dict instead of the spec's."
)
@click.option(
    "--samples", type=click.Path(path_type=Path), help="Folder of pictures to compare on."
)
@click.option(
    "--store", type=click.Path(path_type=Path), default=Path("model-store"), show_default=True
)
@click.option("--force", is_flag=True, help="Replace an archive of the same name and version.")
@click.option("--list", "listing", is_flag=True, help="List the models that can be built.")
def command(names: tuple[str, ...], store: Path, force: bool, listing: bool, **given: Any) -> None:
    """Build archives of the named models (default: those whose weights are in this project).

    NAMES are files of models/ without .yaml, or paths of YAML files.
    """
    if listing:
        _list()
        return
    from marsmith.spec import defaults

    paths = [_path(name) for name in names] or [_path(spec.name) for spec in defaults(Path.cwd())]
    if len(paths) > 1:
        # TorchScript numbers its types per process: a process each keeps archives reproducible.
        arguments = [word for word in sys.argv[1:] if word not in names]
        for path in paths:
            done = subprocess.run([sys.executable, "-m", "marsmith", *arguments, str(path)])
            if done.returncode:
                sys.exit(done.returncode)
        return
    _build(paths[0], store, force, given)


def _build(path: Path, store: Path, force: bool, given: dict[str, Any]) -> None:
    from marsmith.build import build
    from marsmith.spec import load

    console = Console(highlight=False)
    spec = load(path, _overrides(given))
    title = f"{spec.name} {spec.version}"
    with console.status(title) as status:
        built = build(
            spec, Path.cwd(), store, force, lambda stage: status.update(f"{title}: {stage}")
        )
    size = built.path.stat().st_size / 1e6
    console.print(
        f"[green]built[/] {built.path} ({size:.1f} MB, {spec.runtime} {spec.precision}"
        f"{', unchanged' if built.unchanged else ''})\n"
        f"  parity on {built.parity.pictures} pictures at batches {built.parity.batch_sizes}: "
        f"outputs within {built.parity.largest_difference:.1e} of eager "
        f"(allowed {built.parity.tolerance:.0e})\n  sha256 {built.sha256}"
    )


def _overrides(given: dict[str, Any]) -> dict[str, Any]:
    """Command line options as keys of a model file."""
    keys = {key: given[key] for key in ("version", "runtime") if given[key] is not None}
    if given["samples"]:
        keys["samples"] = str(given["samples"])
    if given["method"]:
        keys["runtime_options"] = {"method": given["method"]}
    if given["weights"]:
        keys["weights"] = {"file": str(given["weights"])}
    return keys


def _path(name: str) -> Path:
    path = Path(name) if name.endswith((".yaml", ".yml")) else MODELS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in MODELS.glob("*.yaml")))
        raise SpecError(f"no model {name}: there is no {path}; known are {known}")
    return path


def _list() -> None:
    from marsmith.spec import load

    for path in sorted(MODELS.glob("*.yaml")):
        spec = load(path)
        print(f"{path.stem:40} {spec.task:22} {spec.description}")
