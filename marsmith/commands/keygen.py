"""Make a pair of keys for signing archives."""

from __future__ import annotations

from pathlib import Path

import click

from marsmith.model_options import caller


@click.command()
@click.argument("name", type=click.Path(path_type=Path))
def command(name: Path) -> None:
    """Make a pair of Ed25519 keys: NAME.key, to keep secret, and NAME.pub, to give away.

    Both are PEM files, which openssl reads. Existing files are never replaced.
    """
    from marsmith import keys

    secret, public = keys.generate(caller() / name)
    click.echo(f"{secret.name} signs (`marsmith sign ARCHIVE --key {secret.name}`): keep it secret")
    click.echo(f"{public.name} proves it (require_signature={public.name} in config.properties)")
