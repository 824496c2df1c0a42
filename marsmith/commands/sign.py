"""Sign archives by a private key."""

from __future__ import annotations

from pathlib import Path

import click

from marsmith.model_options import caller


@click.command()
@click.argument("archives", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path), help="Of `marsmith keygen`.")
def command(archives: tuple[Path, ...], key: Path) -> None:
    """Sign ARCHIVES in their place, when every file of them is as it was built.

    They are paths or files of the store. An older signature is replaced. The same archive and key
    give the same bytes.
    """
    from marsmith import signing, store

    for archive in archives:
        signing.sign(store.locate(archive, caller()), caller() / key)
        click.echo(f"signed {archive}")
