"""``python -m marsmith`` is the ``marsmith`` command."""

from marsmith.cli import run

run()
