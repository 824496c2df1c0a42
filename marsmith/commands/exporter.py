"""Publish whether the server is up and how many workers live, for Prometheus and probes."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from marsmith.addresses import join, split
from marsmith.exporter import Exporter


@click.command()
@click.option(
    "--address",
    default="127.0.0.1:8083",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to listen; port 0 takes a free one.",
)
def command(address: str) -> None:
    """Publish whether the server is up and how many workers live, for Prometheus and probes.

    GET /metrics is for Prometheus; for probes, GET /ready says 200 or 503 as `marsmith ready` does,
    and GET /live as TorchServe's own ping does. Runs until Ctrl-C or SIGTERM, also while TorchServe
    is down: that is then what it says.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with Exporter(Path.cwd(), address) as exporter:
        place = join(split(address)[0], exporter.port)
        click.echo(f"http://{place}/metrics, /ready and /live; Ctrl-C stops it")
        ended.wait()
