"""Check this host and the configuration, and say what to mend."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="Default: config.properties.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(config: Path | None, as_json: bool) -> None:
    """Check this host and the configuration, and say what to mend. Nothing is started or changed.

    Java, ports, permissions, open addresses, tokens, dangerous settings, disk, packages, and every
    archive of the store. Exits with 1 where something is wrong; warnings alone give 0.
    """
    from marsmith import doctor
    from marsmith.environment import CONFIG_NAME
    from marsmith.terminal import printable

    home = Path.cwd()
    found = doctor.examine(home, config or home / CONFIG_NAME)
    if as_json:
        print(json.dumps([one.to_json() for one in found], indent=1))
    else:
        colors = {"ok": "green", "warning": "yellow", "wrong": "red"}
        for one in found:
            level = click.style(f"{one.level:8}", fg=colors[one.level])
            click.echo(f"{level} {one.subject}: {printable(one.text)}")
            if one.mend:
                click.echo(f"{'':8}   {printable(one.mend)}")
    sys.exit(1 if any(one.level == "wrong" for one in found) else 0)
