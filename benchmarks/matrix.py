"""Which model of the catalogue works on which runtime, and why another does not.

``python -m benchmarks.matrix [NAME...] [--runtime R]...`` builds, proves and loads each pair with
prepared weights, and after each writes what it found into the table of ``docs/matrix.md``, which it
continues; ``--page`` only writes the page anew. Pairs that are known are not run again, unless
``--again`` is said. TensorRT's, where it is not installed, are of its ONNX in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.prepared import prepare
from benchmarks.serving.machine import commit
from handlers import plugins, split
from handlers.bundle import DECODE_FILE
from handlers.errors import MarsmithError
from handlers.inputs import ImageInput
from handlers.runtimes import Array, Arrays
from handlers.runtimes.onnx import Onnx
from marsmith import exporting, parity, preparing, samples, trials
from marsmith.spec import ModelSpec, load, parse

PROJECT = Path(__file__).parents[1]

PAGE = PROJECT / "docs/matrix.md"
# For detectors on runtimes whose shapes may not depend on data: what ``_HEAD`` has as options.
_FIXED: dict[str, Any] = {"resize": [320, 320], "letterbox": 0, "mean": [0.0] * 3, "std": [1.0] * 3}

_HEAD = """# Models and runtimes

`python -m benchmarks.matrix` made this table: each model of the catalogue, with prepared weights
(see `docs/catalogue.md`), in fp32 on each runtime. Where no ~ stands, the archive is the one of
`./build_mar.sh MODEL --runtime RUNTIME --weights FILE`, and was loaded in a clean process. A cell
is the largest difference of a score from eager's on the sample pictures, where all decisions
(labels, boxes, masks) must agree as well; a number in brackets refers to the reason why a pair does
not work. Where a * stands, the command has `--resize 320,320 --letterbox 0` as well, without which
it is refused: this runtime takes a detector with a fixed input alone, whose second half runs in the
handler. The weights were prepared to that input. Models that are missing were not run. TensorRT
needs an NVIDIA GPU, which the machine of this table has not: where a ~ stands, nothing was built,
and ONNX Runtime ran the ONNX that TensorRT would be given (with a *, of that input), which shows
that the model has such a form, and not that TensorRT takes it. *commit* is what a row was made
with, several where it was made in parts; f25dce8 and those before it are what brought the figures
here. Speed is for `marsmith formats` to say, on your machine.

"""


def main(words: list[str]) -> int:
    """Run what is asked for and write the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.matrix", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--runtime", action="append", default=[], choices=plugins.names("runtimes"))
    parser.add_argument("--again", action="store_true", help="run what is known, too")
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    given = parser.parse_args(words)
    specs = [load(path) for path in sorted((PROJECT / "models").glob("*.yaml"))]
    known = {spec.name: spec for spec in specs if spec.weights.torchvision is not None}
    if unknown := sorted(set(given.names) - set(known)):
        parser.error(f"no model file of the catalogue: {', '.join(unknown)}")
    if given.page:
        _write(*_read(PAGE), known)
        return 0
    for name in given.names or known:
        _run(known[name], given.runtime, known, again=given.again)
    return 0


def _run(spec: ModelSpec, runtimes: list[str], known: dict[str, ModelSpec], again: bool) -> None:
    done = _read(PAGE)[0].get(spec.name, {})
    pairs = [
        (runtime, precision)
        for runtime, precision in trials.pairs(spec, ["fp32"])
        if (not runtimes or runtime in runtimes) and (again or runtime not in done)
    ]
    if not pairs:
        return
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        weights: dict[bool, Path] = {}
        anew: set[str] = set()
        for runtime, precision in pairs:
            fixed = _needs_fixed(spec, runtime)
            if fixed not in weights:
                (folder := home / f"weights-{fixed}").mkdir()
                weights[fixed] = prepare(spec, folder, ImageInput(**_FIXED) if fixed else None)
            changed = _changed(spec, fixed, weights[fixed])
            if _is_shown_by_onnx(runtime):
                found = _as_onnx(changed, runtime, home)
            else:
                run = trials.run(changed, PROJECT, home / "store", [(runtime, precision)], print)
                found = next(run).to_json()
            # Others may have written to the page meanwhile.
            results, commits = _read(PAGE)
            results.setdefault(spec.name, {})[runtime] = found
            anew.add(runtime)
            before = commits.get(spec.name, []) if results[spec.name].keys() - anew else []
            commits[spec.name] = list(dict.fromkeys([*before, commit()]))
            _write(results, commits, known)


def _is_shown_by_onnx(name: str) -> bool:
    """Whether a runtime is not installed, and has artifacts that ONNX Runtime can run."""
    runtime = plugins.load_runtime(name)
    missing = any(find_spec(package) is None for package in runtime.requires)
    return missing and runtime.suffix == Onnx.suffix


def _as_onnx(spec: ModelSpec, runtime: str, home: Path) -> dict[str, Any]:
    """What a runtime would be given, run by ONNX Runtime against eager."""
    print(f"{runtime} fp32: its ONNX")
    folder = Path(tempfile.mkdtemp(dir=home))
    try:
        module, bundle = preparing.prepare(spec.on("onnx"), PROJECT, folder)
        told = preparing.unrecorded(spec.on(runtime), PROJECT)
        bundle = replace(told, decode=bundle.decode)
        eager = preparing.reference(bundle, module)
        files = samples.found(PROJECT / spec.samples)
        images = samples.compared(files, spec.serving.max_pixels, not bundle.input.fixed)
        example = eager.preprocess(images[0])
        made = exporting.artifact(bundle, module, example, folder)
        made.make()
        model: Any = Onnx(made.request.path, "cpu", {"threads": 2})
        if (folder / DECODE_FILE).exists():
            model = split.Halves(model, split.load(folder, bundle.input, "cpu"), "cpu")
        kinds = [each.dtype for each in eager.model(np.stack([example]))]

        def narrowed(*arrays: Array) -> Arrays:
            # Bytes are int32 in it, which the runtime narrows behind the engine.
            found = zip(model(*arrays), kinds, strict=True)
            return tuple(each.astype(kind) for each, kind in found)

        given = plugins.load_task(spec.task)()
        given.bundle, given.model = bundle, narrowed
        report = parity.check(parity.Expected.of(eager, images), given)
    except MarsmithError as error:
        return {"problem": str(error)}
    difference = report.largest_score_difference
    return {"problem": None, "largest_difference": difference, "as_onnx": True}


def _changed(spec: ModelSpec, fixed: bool, weights: Path) -> ModelSpec:
    """The spec with prepared weights, and with a fixed input where that is needed."""
    fields = spec.model_dump(mode="json", exclude_unset=True)
    fields["weights"] = {**fields["weights"], "file": str(weights)}
    if fixed:
        fields["input"] = _FIXED
    return parse(fields, spec.name)


def _needs_fixed(spec: ModelSpec, runtime: str) -> bool:
    return plugins.halved(spec.task, runtime, spec.precision)


def _read(page: Path) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """What ``_write`` wrote: by model and runtime the difference, or the problem; and by model the
    commits."""
    lines = page.read_text("utf-8").splitlines() if page.is_file() else []
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| ")
    ]
    reasons = dict(re.findall(r"^(\d+)\. (.+)$", "\n".join(lines), re.MULTILINE))
    found: dict[str, dict[str, Any]] = {}
    commits: dict[str, list[str]] = {}
    for name, *cells, made in rows[1:]:
        model = found.setdefault(name.strip("`"), {})
        commits[name.strip("`")] = made.split(", ")
        for runtime, cell in zip(rows[0][1:-1], cells, strict=True):
            if number := re.fullmatch(r"no \((\d+)\)", cell):
                model[runtime] = {"problem": reasons[number[1]]}
            elif cell != "not run":
                model[runtime] = {"problem": None, "largest_difference": float(cell.strip("*~"))}
                model[runtime]["as_onnx"] = "~" in cell
    return found, commits


def _write(
    results: dict[str, dict[str, Any]], commits: dict[str, list[str]], known: dict[str, ModelSpec]
) -> None:
    PAGE.write_text(_HEAD + _table(results, commits, known), encoding="utf-8")


def _table(
    results: dict[str, Any], commits: dict[str, list[str]], known: dict[str, ModelSpec]
) -> str:
    runtimes = sorted({runtime for found in results.values() for runtime in found})
    reasons: list[str] = []
    rows = [
        f"| model | {' | '.join(runtimes)} | commit |",
        f"|---|{'---|' * len(runtimes)}---|",
    ]
    for name in sorted(results):
        cells = [
            _cell(known[name], runtime, results[name].get(runtime), reasons) for runtime in runtimes
        ]
        rows.append(f"| `{name}` | {' | '.join([*cells, ', '.join(commits[name])])} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*rows, "", *notes]).strip() + "\n"


def _cell(spec: ModelSpec, runtime: str, trial: Any, reasons: list[str]) -> str:
    if trial is None:
        return "not run"
    if trial["problem"]:
        reason = re.sub(r"[|\s]+", " ", trial["problem"])
        if reason not in reasons:
            reasons.append(reason)
        return f"no ({reasons.index(reason) + 1})"
    marks = "*" * _needs_fixed(spec, runtime) + "~" * trial.get("as_onnx", False)
    return f"{trial['largest_difference']:.0e}{marks}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
