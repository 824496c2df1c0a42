"""``python -m marsmith`` is the ``marsmith`` command."""

from marsmith.cli import main

main()
