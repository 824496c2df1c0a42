"""Show a model's ONNX graph in the browser, or save a picture of it."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from marsmith.unused import said

HOST = "127.0.0.1"


@click.command()
@click.argument("model")
@click.option("--save", type=click.Path(path_type=Path), help="Write a picture: FILE.svg or .png.")
@click.option(
    "--boxes", type=click.IntRange(2), default=30, show_default=True, help="At most, in a picture."
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Default: a free one.")
@click.option("--browser/--no-browser", default=True, help="Open the browser as well.")
def command(model: str, save: Path | None, boxes: int, port: int, browser: bool) -> None:
    """Show the ONNX graph of MODEL: a name (of models/ or torchvision), a YAML file, an archive
    or FILE.onnx.

    netron serves it on the loopback interface until Ctrl-C. A picture (--save) has a box for each
    module, opened as far as --boxes allows. Of a model without an ONNX archive the graph is
    exported from its network without weights.
    """
    from marsmith import graphs

    if save is None:
        if said("boxes"):
            raise click.UsageError("--boxes is of a picture: give --save FILE as well")
        graphs.require("netron")
    elif idle := said("port", "browser"):
        raise click.UsageError(f"{idle}: with --save nothing is served: leave that out")
    with graphs.onnx_of(model) as (path, kinds):
        if save is None:
            _serve(path, port, browser)
            return
        from marsmith import graph_picture

        found, edges = graphs.groups(path, boxes)
        graph_picture.save(save, model, found, edges, kinds)
    click.echo(
        f"{save}: {sum(sum(each.kinds.values()) for each in found)} nodes in {len(found)} boxes"
    )


def _serve(path: Path, port: int, browser: bool) -> None:
    import netron

    host, port = netron.serve(str(path), address=(HOST, port), browse=browser)
    click.echo(f"{path.name} at http://{host}:{port} until Ctrl-C")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    netron.wait()
