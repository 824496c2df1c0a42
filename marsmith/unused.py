"""Options that have no use in what a command was asked: who says them is told, not passed over."""

from __future__ import annotations

from collections.abc import Mapping

import click
from click.core import ParameterSource

from handlers.errors import SpecError


def said(*names: str) -> str:
    """Those of the running command's options ``names`` that stand on its command line, in words.

    What has its default from elsewhere was not said: ``("port", "browser")`` -> "--no-browser".
    """
    context = click.get_current_context()
    return ", ".join(
        spelt(option, context.params[option.name])
        for option in context.command.params
        if isinstance(option, click.Option)
        and option.name in names
        and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    )


def spelt(option: click.Option, value: object) -> str:
    """An option's name as it is written where it has this value."""
    off = option.is_flag and not value and option.secondary_opts
    return (option.secondary_opts if off else option.opts)[0]


def only_with(partner: str, options: Mapping[str, object]) -> None:
    """Raise SpecError for the first of ``options`` that has a value, where ``partner`` is not."""
    for option, value in options.items():
        if value is not None:
            raise SpecError(f"{option} goes with {partner} alone")
