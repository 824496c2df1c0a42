"""Build and serve every model of the catalogue with prepared weights, against plain torchvision.

``python -m benchmarks.catalogue [NAMES...] [--runtime RUNTIME]...`` prints a line for each model on
each runtime (its own where none is said) and puts it into ``docs/catalogue.md``, in the place of an
earlier one; ``--page`` only writes the rest of the page anew.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.prepared import prepare
from benchmarks.serving.machine import commit
from benchmarks.truth import agreement
from marsmith import named
from marsmith.addresses import free_addresses
from marsmith.environment import CONFIG_NAME, temp_folder
from marsmith.server import TorchServe
from marsmith.spec import ModelSpec, load

PROJECT = Path(__file__).parents[1]

PAGE = PROJECT / "docs/catalogue.md"

_HEAD = """# The catalogue

Models with torchvision's own weights: `./build_mar.sh NAME` downloads the weights once, checks
their sha256 and builds the archive. Without network it says which file to put where. Labels, size
of the input and preprocessing come with the weights. NAME is any classification, segmentation or
detection network of torchvision (`--list` has all); those below have a file in `models/`. For the
others each task says runtime, samples and whether TorchScript traces or scripts
(`torchvision_keys` of its file in `handlers/tasks/`), and their best weights are taken. Mask and
Keypoint R-CNN answer with their boxes.

`python -m benchmarks.catalogue` made this table without a download. The weights are random, seeded,
and prepared so that pictures, pixels and boxes differ; their files have the names and keys of
torchvision's. Each model was built, proven against eager (*parity*: the largest difference of a
score from torchvision's own model in memory) and served by TorchServe; then its answers to four
pictures in three sizes, sent together in one request and all at once, were compared with
`torchvision.models.get_model(name, weights=...)` and torchvision's preset, one picture at a time:
*scores* is the largest difference of a score (a share of the mask for segmentation), *overlap* the
least IoU of two boxes or share of equal pixels. Boxes are compared from a score of 0.05 on (FCOS:
0.2, below which torchvision's own gives none), and there must be some at each of the three sizes.
A torchscript detector is scripted and all else traced, as the model files say. On onnx and openvino
detectors take one picture a call. Build times are of two cores, some of them busy. *commit* is the
one that a row was made with, or for rows of before 30 November 2026 the one that brought it here.

| model | runtime | build s | archive MB | parity | compared | scores | overlap | commit |
|---|---|---|---|---|---|---|---|---|
"""
# Seconds of a build.
_MOST = 3600
_THINGS = {
    "image-classification": "labels",
    "object-detection": "boxes",
    "semantic-segmentation": "classes",
}


def main(words: list[str]) -> int:
    """Check the models, all of torchvision's where none is named; 1 where one fails."""
    parser = argparse.ArgumentParser(prog="benchmarks.catalogue")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--runtime", action="append", help="instead of the model file's own")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args(words)
    specs = [load(path) for path in sorted((PROJECT / "models").glob("*.yaml"))]
    files = {spec.name: spec for spec in specs if spec.weights.torchvision is not None}
    known = files | {n: named.load(n, PROJECT) for n in given.names if n not in files}
    good = True
    for name in [] if given.page else given.names or files:
        for runtime in given.runtime or [known[name].runtime]:
            found = _check(known[name], runtime)
            good = good and not found.get("problem")
            row = _row(known[name], runtime, found)
            print(row, flush=True)
            # Others may have written to the page meanwhile.
            PAGE.write_text(_page({**_rows(PAGE), (name, runtime): row}, files), encoding="utf-8")
    if given.page:
        PAGE.write_text(_page(_rows(PAGE), files), encoding="utf-8")
    return int(not good)


def _rows(page: Path) -> dict[tuple[str, str], str]:
    """The rows of a page, by model and runtime."""
    text = page.read_text("utf-8") if page.is_file() else ""
    return {
        (found[1], found[2]): found[0]
        for found in re.finditer(r"^\| `([^`]+)` \| (\S+) \|.*$", text, re.MULTILINE)
    }


def _page(rows: dict[tuple[str, str], str], files: dict[str, ModelSpec]) -> str:
    lines = [row for _, row in sorted(rows.items())]
    missing = sorted(name for name, spec in files.items() if (name, spec.runtime) not in rows)
    left = ", ".join(f"`{name}`" for name in missing)
    lines += [f"\nNot run yet on the runtime of its model file: {left}."] if left else []
    return _HEAD + "\n".join(lines) + "\n"


def _check(spec: ModelSpec, runtime: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        weights = prepare(spec, home)
        store = home / "model-store"
        start = time.monotonic()
        problem = _build(spec, runtime, weights, store)
        if problem:
            return {"problem": problem}
        seconds = time.monotonic() - start
        archive = store / f"{spec.name}-{spec.version}.mar"
        with zipfile.ZipFile(archive) as opened:
            parity = json.loads(opened.read("parity.json"))
        result = {
            "seconds": round(seconds),
            "megabytes": round(archive.stat().st_size / 1e6, 1),
            "parity": max(parity["largest_difference"] or 0.0, parity["largest_score_difference"]),
        }
        return {**result, **_serve(spec, weights, home)}


def _build(spec: ModelSpec, runtime: str, weights: Path, store: Path) -> str | None:
    """Why the build failed, None where it did not."""
    command = [sys.executable, "-m", "marsmith", "build", spec.name, "--runtime", runtime]
    command += ["--weights", str(weights), "--store", str(store)]
    try:
        done = subprocess.run(command, cwd=PROJECT, timeout=_MOST, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return f"it took more than {_MOST} s to build"
    return (done.stderr or done.stdout).strip().splitlines()[-1] if done.returncode else None


def _serve(spec: ModelSpec, weights: Path, home: Path) -> dict[str, Any]:
    free = "".join(f"{name}={value}\n" for name, value in free_addresses().items())
    (home / CONFIG_NAME).write_text((PROJECT / CONFIG_NAME).read_text() + free)
    try:
        with TorchServe(home) as server:
            [status] = server.wait_ready(300)
            if status.failed:
                return {"problem": status.failed}
            found = agreement(server, spec, weights)
    finally:
        shutil.rmtree(temp_folder(home), ignore_errors=True)
    return {
        "objects": found.objects,
        "score": found.score,
        "overlap": found.overlap,
        "problem": found.problem,
    }


def _row(spec: ModelSpec, runtime: str, result: dict[str, Any]) -> str:
    cells = [f"`{spec.name}`", runtime]
    if result.get("problem"):
        words = re.sub(r"[|\s]+", " ", result["problem"])
        cells += [f"**fails**: {words}", *[""] * 5]
    else:
        cells += [
            str(result["seconds"]),
            str(result["megabytes"]),
            f"{result['parity']:.1e}",
            f"{result['objects']} {_THINGS[spec.task]}",
            f"{result['score']:.1e}",
            "" if spec.task == "image-classification" else f"{result['overlap']:.5f}",
        ]
    return f"| {' | '.join([*cells, commit()])} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
