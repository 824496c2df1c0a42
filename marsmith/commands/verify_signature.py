"""Check who signed archives, and that no byte has changed since."""

from __future__ import annotations

from pathlib import Path

import click

from marsmith.model_options import caller


@click.command()
@click.argument("archives", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--key",
    "keys",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Public key that may have signed; repeatable.",
)
def command(archives: tuple[Path, ...], keys: tuple[Path, ...]) -> None:
    """Check that one of the keys signed ARCHIVES, and that no byte has changed since.

    They are paths or files of the store. Nothing of an archive is imported or run. Exits with 1 at
    the first that is not as signed.
    """
    from marsmith import signing, store

    for archive in archives:
        signer = signing.check(store.locate(archive, caller()), [caller() / key for key in keys])
        click.echo(f"{archive}: every file is as signed by {signer.name}")
