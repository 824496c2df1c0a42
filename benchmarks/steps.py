"""What single steps of a request, a start and a build cost, each done in the ways there are.

``python -m benchmarks.steps --pictures DIR [--archive FILE.mar] [--rounds N]`` prints a table: CPU
milliseconds of this process, the least of the rounds, all ways of a step in turn. JPEGs are those
of DIR; the mask is a rendered scene's, as large as the first of them; ``--archive`` adds how long
its files take to be unpacked and read.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from handlers import jpeg
from handlers.tasks import semantic_segmentation as segmentation
from marsmith import samples
from training import heldout

Ways = Mapping[str, Callable[[], Any]]
# As many as a full batch has by default.
_TOGETHER = 8


def main(words: list[str]) -> int:
    """Measure every step and print a line for each way."""
    parser = argparse.ArgumentParser(prog="benchmarks.steps", description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True, metavar="DIR")
    parser.add_argument("--archive", type=Path, metavar="FILE.mar")
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args(words)
    # What is not RGB or grey is Pillow's alone.
    decoded = [
        body
        for path in (samples.found(given.pictures) if given.pictures.is_dir() else ())
        if jpeg.decode(body := path.read_bytes(), None) is not None
    ]
    # At least one full batch.
    bodies = decoded * math.ceil(_TOGETHER / len(decoded)) if decoded else []
    if not bodies:
        parser.error(f"no JPEG in {given.pictures} that can be read: give a folder that has some")
    print("| step | way | CPU ms | by the clock |\n|---|---|---|---|")
    _show("decode a JPEG", _decoding(bodies), given.rounds, len(bodies))
    with ThreadPoolExecutor(2) as two, ThreadPoolExecutor(4) as four:
        ways = _together(bodies, {"2 threads": two, "4 threads": four})
        _show(f"decode {_TOGETHER} JPEGs", ways, given.rounds, len(bodies) // _TOGETHER)
    _show("write a mask", _masks(bodies[0]), given.rounds, 1)
    if given.archive:
        with tempfile.TemporaryDirectory() as folder:
            _show("unpack an archive", _unpacking(given.archive, Path(folder)), given.rounds, 1)
    return 0


def _show(step: str, ways: Ways, rounds: int, times: int) -> None:
    least: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for name, run in ways.items():
            cpu, clock = time.process_time(), time.perf_counter()
            run()
            spent = (time.process_time() - cpu, time.perf_counter() - clock)
            least[name] = min(least.get(name, spent), spent)
    for name, (cpu, clock) in least.items():
        print(f"| {step} | {name} | {1e3 * cpu / times:.3g} | {1e3 * clock / times:.3g} |")


def _decoding(bodies: list[bytes]) -> Ways:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    # Deprecated in favour of torchcodec.
    warnings.filterwarnings("ignore", "The.*deprecated", DeprecationWarning, "torchvision")
    encoded = [torch.frombuffer(bytearray(body), dtype=torch.uint8) for body in bodies]
    return {
        "simplejpeg, as here": lambda: [jpeg.decode(body, None) for body in bodies],
        "Pillow": lambda: [np.asarray(_opened(body)) for body in bodies],
        "torchvision": lambda: [decode_jpeg(one, mode=ImageReadMode.RGB) for one in encoded],
    }


def _opened(body: bytes) -> Image.Image:
    return Image.open(io.BytesIO(body)).convert("RGB")


def _together(bodies: list[bytes], pools: Mapping[str, ThreadPoolExecutor]) -> Ways:
    batches = [
        bodies[start : start + _TOGETHER]
        for start in range(0, len(bodies) - _TOGETHER + 1, _TOGETHER)
    ]

    def decode(body: bytes) -> Any:
        return jpeg.decode(body, None)

    def pooled(pool: ThreadPoolExecutor) -> Callable[[], Any]:
        return lambda: [list(pool.map(decode, batch)) for batch in batches]

    ways: dict[str, Callable[[], Any]] = {
        "in turn": lambda: [list(map(decode, batch)) for batch in batches]
    }
    return ways | {name: pooled(pool) for name, pool in pools.items()}


def _masks(body: bytes) -> Ways:
    _, _, _, ids = heldout.scenes(1)[0]
    size = _opened(body).size
    mask = np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))

    def png(level: int) -> int:
        file = io.BytesIO()
        Image.fromarray(mask).save(file, "PNG", compress_level=level)
        return len(file.getvalue())

    def runs() -> list[Any]:
        return [segmentation._rle(mask == each) for each in np.unique(mask)]

    ways: dict[str, Callable[[], Any]] = {
        f"PNG, level {level}: {png(level)} bytes": lambda level=level: png(level)  # type: ignore[misc]
        for level in (1, 3, 6, 9)
    }
    return ways | {"runs of each class": runs}


def _unpacking(archive: Path, folder: Path) -> Ways:
    packed = folder / "packed.mar"
    with (
        zipfile.ZipFile(archive) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))

    def unpack(path: Path) -> Callable[[], Any]:
        return lambda: zipfile.ZipFile(path).extractall(folder / "out")

    def named(path: Path) -> str:
        return f"{path.stat().st_size / 1e6:.1f} MB"

    return {
        f"stored: {named(archive)}": unpack(archive),
        f"deflated: {named(packed)}": unpack(packed),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
