"""Show everything once: build, serve, predict over REST and gRPC, draw, scale, stop."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from handlers.errors import ServerError
from handlers.plugins import load_task
from marsmith import samples, terminal
from marsmith.addresses import free_addresses
from marsmith.client import Client
from marsmith.environment import SIGNATURE_SETTING
from marsmith.grpc_client import GrpcClient
from marsmith.server import TorchServe
from marsmith.spec import ModelSpec, defaults

HOME = Path("build/demo")
# A store of its own, so that a demo neither meets nor replaces what is served.
STORE = HOME / "model-store"
PICTURES = 3


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("demo-out"), help="For drawn pictures."
)
def command(out: Path) -> None:
    """Build the archives of this repository's own weights, serve them, ask them, stop."""
    # A table does not fit the 80 columns that a pipe is taken for.
    console = terminal.console(110)
    # What they leave out the build tells.
    specs = defaults(Path.cwd())
    console.rule("1. Build: each archive is compared with its PyTorch model")
    HOME.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    build = [sys.executable, "-m", "marsmith", "build", "--store", str(STORE), "--force"]
    if subprocess.run(build).returncode:
        raise SystemExit(1)
    console.rule("2. Serve: TorchServe on free ports of the loopback interface")
    server = TorchServe(
        HOME,
        model_store=STORE,
        archives=[f"{spec.name}-{spec.version}.mar" for spec in specs],
        config_file=Path("config.properties"),
        # Its archives were built a moment ago, and nobody has signed them.
        config={**free_addresses(), SIGNATURE_SETTING: None},
    )
    start = time.perf_counter()
    with server:
        for status in server.wait_ready():
            if status.failed:
                raise ServerError(f"{status.model} {status.version}: {status.failed}")
        seconds = time.perf_counter() - start
        console.print(f"{len(specs)} models answer their golden requests after {seconds:.1f} s")
        with server.client() as client, GrpcClient.of(server.running) as grpc:
            console.rule("3. Predict: the same pictures over REST and gRPC")
            console.print(_predictions(specs, client, grpc, out))
            console.rule("4. A request that cannot be answered fails alone, and says why")
            bad = client.predict(specs[0].name, b"<html>not a picture</html>")
            console.print(f"{bad.status} {bad.body.decode()}", markup=False, soft_wrap=True)
            console.rule("5. Scale over the management API")
            console.print(client.scale(specs[0].name, 2), markup=False)
    console.rule("6. Stopped")
    console.print("Drawn answers: " + ", ".join(str(path) for path in sorted(out.iterdir())))


def _predictions(specs: list[ModelSpec], client: Client, grpc: GrpcClient, out: Path) -> Table:
    table = Table("model", "picture", "answer over REST", "ms", "over gRPC", "ms")
    table.columns[0].no_wrap = True
    for spec in specs:
        task = load_task(spec.task)
        found = samples.files(Path(spec.samples), f"{spec.name}: samples")
        for path in found[:: max(1, len(found) // PICTURES)][:PICTURES]:
            picture = path.read_bytes()
            rest, rest_ms = _timed(lambda s=spec, p=picture: client.predict(s.name, p).json())
            other, grpc_ms = _timed(
                lambda s=spec, p=picture: grpc.predict(s.name, {"data": p}).json()
            )
            same = "the same" if rest == other else f"[red]{other}[/]"
            table.add_row(
                spec.name, path.name, task.summary(rest), f"{rest_ms:.0f}", same, f"{grpc_ms:.0f}"
            )
        drawn = client.predict(spec.name, picture, accept="image/jpeg")
        if not drawn.ok:
            raise ServerError(f"{spec.name}: {drawn.problem()}")
        (out / f"{spec.name}.jpg").write_bytes(drawn.body)
    return table


def _timed(call: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return call(), (time.perf_counter() - start) * 1000
