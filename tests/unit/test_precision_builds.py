"""Archives in 16 and 8 bits: what passes is recorded, and what loses too much builds nothing."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from handlers import onnx_export
from handlers.bundle import Bundle
from handlers.closeness import DEFAULTS
from handlers.errors import AccuracyError, ParityError, RuntimeUnavailable, SpecError
from handlers.runtimes import ExportRequest
from handlers.runtimes.eager import Eager
from handlers.runtimes.torchscript import TorchScript
from handlers.servable import Servable
from handlers.task import TaskHandler
from marsmith import build, parity, preparing, proving, quantise, samples, spec, spec_parts
from marsmith.archive import unpack
from marsmith.build import Built

DIGITS = "samples/digits"
# Half of the pictures to calibrate with leave the others to measure on.
CALIBRATION = {"folder": DIGITS, "count": 5}
ACCURACY = {"folder": DIGITS}
LAYERS = 5

Build = Callable[..., Built]


@pytest.fixture
def built(project: Path, tmp_path: Path) -> Build:
    """Build the digits' LeNet-5 with changes of its model file."""

    def make(**changes: Any) -> Built:
        model = spec.load(project / "models/lenet5_digits.yaml", changes)
        return build.build(model, project, tmp_path / "store", tell=lambda _: None)

    return make


def contents(archive: Path) -> tuple[Path, Bundle, dict[str, Any]]:
    """An archive unpacked: its folder, its bundle and its report."""
    folder = archive.parent / "unpacked"
    unpack(archive, folder)
    return folder, Bundle.read(folder), json.loads((folder / "parity.json").read_text())


def test_what_is_to_be_installed_is_told_before_anything_is_computed(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    changes = {"runtime": "aotinductor", "precision": "int8"}
    changes |= {"calibration": CALIBRATION, "accuracy": ACCURACY}
    model = spec.load(project / "models/lenet5_digits.yaml", changes)
    stages: list[str] = []
    with pytest.raises(RuntimeUnavailable, match="torchao: .*`make runtime-aotinductor`"):
        build.build(model, project, tmp_path / "store", tell=stages.append)
    assert stages == ["weights"]


def test_bf16_passes_and_is_recorded(built: Build) -> None:
    found = built(precision="bf16", runtime="torchscript", accuracy=ACCURACY)
    _, bundle, report = contents(found.path)
    assert (bundle.runtime, bundle.precision) == ("torchscript", "bf16")
    assert bundle.closeness == DEFAULTS["bf16"]
    assert bundle.provenance["spec"]["precision"] == "bf16"
    assert "calibration" not in bundle.provenance
    # Of fp32 it is rounding's, 1e-7.
    assert 1e-6 < report["largest_difference"] <= report["tolerance"] == DEFAULTS["bf16"].outputs
    before = report["fp32"]
    assert before["largest_difference"] <= before["tolerance"] == DEFAULTS["fp32"].outputs
    assert before["largest_difference"] < report["largest_difference"]
    assert (report["accuracy"]["truth"], report["accuracy"]["pictures"]) == ("eager", 10)


def test_int8_passes_and_is_recorded(
    built: Build, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[Path] = []
    export = onnx_export.export

    def counted(request: ExportRequest, path: Path) -> None:
        exported.append(path)
        export(request, path)

    monkeypatch.setattr(onnx_export, "export", counted)
    found = built(precision="int8", runtime="openvino", calibration=CALIBRATION, accuracy=ACCURACY)
    # It is made of the artifact in fp32 that was proven.
    assert len(exported) == 1
    folder, bundle, report = contents(found.path)
    assert (bundle.runtime, bundle.precision) == ("openvino", "int8")
    drawn = random_half(project)
    assert bundle.provenance["calibration"] == {
        "pictures": 5,
        "data": quantise.digest(drawn),
        "float_layers": [],
    }
    made_of = bundle.provenance["spec"]
    assert made_of["calibration"] == {"folder": DIGITS, "count": 5, "seed": 0, "keep_fp32": 0}
    assert made_of["accuracy"] == {"folder": DIGITS, "drop": 0.01, "count": None, "seed": 0}
    assert quantise.read(folder) == quantise.digests(drawn)
    assert found.proof.accuracy is not None
    assert report["accuracy"] == json.loads(json.dumps(found.proof.accuracy.to_json()))
    measured = report["accuracy"]
    assert (measured["metric"], measured["truth"], measured["pictures"]) == ("top-1", "eager", 5)
    assert measured["drop"] <= measured["allowed"] == 0.01
    assert report["tolerance"] == DEFAULTS["int8"].outputs
    assert report["fp32"]["tolerance"] == DEFAULTS["fp32"].outputs
    assert "accuracy" not in report["fp32"]
    # What int8 was made of is not packed.
    assert sorted(path.name for path in folder.glob("model*")) == [
        "model-config.yaml",
        "model.bin",
        "model.xml",
    ]
    kinds = re.findall(r'element_type="([ui]8)" shape', (folder / "model.xml").read_text())
    assert kinds.count("i8") >= LAYERS - 1


def random_half(project: Path) -> list[Path]:
    from marsmith.spec_parts import CalibrationSpec

    return quantise.calibration_files(CalibrationSpec(**CALIBRATION), project)


# An export that is wrong in every precision ----------------------------------------------------


class Brighter(nn.Module):
    """A network whose pictures are a little brighter: with the mean of another preset, say."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(images + 0.3)
        return found


def mistaken(module: Servable) -> Servable:
    wrong = copy.deepcopy(module)
    wrong.network.network = Brighter(wrong.network.network)
    return wrong


def test_a_wrong_export_that_hides_within_the_limits_of_few_bits_is_refused(
    built: Build, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, module = eager(project, tmp_path)
    images = [Image.open(path) for path in samples.found(project / DIGITS)]
    wrong = preparing.reference(right.bundle, mistaken(module))
    for each in (right, wrong):
        each.bundle = replace(each.bundle, closeness=DEFAULTS["int8"])
    assert parity.check(parity.Expected.of(right, images), wrong).largest_difference > 1e-3
    export = TorchScript.export
    asked: list[str] = []

    def broken(request: ExportRequest) -> None:
        asked.append(request.precision)
        export(replace(request, module=mistaken(request.module)))

    monkeypatch.setattr(TorchScript, "export", broken)
    monkeypatch.setattr(TorchScript, "precisions", ("fp32", "bf16", "int8"))
    words = "^in fp32, before int8 is made of it: sample 1, batch of 1, output 0: differs from "
    with pytest.raises(ParityError, match=words):
        built(**int8() | {"runtime": "torchscript"})
    assert asked == ["fp32"]
    assert not list((tmp_path / "store").iterdir())


def test_only_what_is_said_of_fp32_loosens_the_limits_of_what_few_bits_are_made_of() -> None:
    said = {"tolerance": 0.2, "fp32": {"tolerance": 3e-4}}
    given = spec_parts.ParitySpec.model_validate(said)
    assert [given.closeness(each).outputs for each in ("int8", "bf16")] == [0.2, 0.2]
    assert given.closeness("fp32").outputs == given.exact().outputs == 3e-4
    assert spec_parts.ParitySpec(tolerance=0.2).exact() == DEFAULTS["fp32"]
    assert given.golden is None


def test_what_is_said_of_one_precision_leaves_the_others_at_their_defaults() -> None:
    given = spec_parts.ParitySpec.model_validate({"int8": {"tolerance": 0.5}})
    assert given.closeness("int8") == replace(DEFAULTS["int8"], outputs=0.5)
    for other in ("fp32", "bf16", "fp16"):
        assert given.closeness(other) == DEFAULTS[other]
    assert given.exact() == DEFAULTS["fp32"]


@pytest.mark.parametrize("precision", DEFAULTS)
def test_what_is_said_of_one_precision_goes_before_what_is_said_of_all(precision: str) -> None:
    said = {"tolerance": 0.2, "overlap": 0.8, precision: {"tolerance": 0.003}}
    given = spec_parts.ParitySpec.model_validate(said)
    for each in DEFAULTS:
        found = given.closeness(each)
        assert (found.outputs, found.overlap) == (0.003 if each == precision else 0.2, 0.8)
    usual = DEFAULTS[precision]
    assert given.own_limits(precision) == (
        f"parity.{precision}.tolerance 0.003 (default in {precision}: {usual.outputs:g}), "
        f"parity.overlap 0.8 (default in {precision}: {usual.overlap:g})"
    )


def test_a_limit_of_the_model_file_that_is_missed_is_named(built: Build) -> None:
    narrow = spec_parts.ParitySpec(tolerance=1e-6)
    words = (
        r"differs from eager by .* \(> 1e-06\); the model file itself says parity.tolerance 1e-06 "
        r"\(default in bf16: 0.1\)$"
    )
    with pytest.raises(ParityError, match=words):
        built(precision="bf16", runtime="torchscript", parity=narrow)


def test_limits_are_named_by_their_keys_beside_the_defaults() -> None:
    exact = spec_parts.ClosenessSpec(answers=0.01)
    given = spec_parts.ParitySpec(tolerance=0.2, golden=0.01, fp32=exact)
    assert given.own_limits("int8") == "parity.tolerance 0.2 (default in int8: 0.4)"
    assert given.own_limits("fp32") == (
        "parity.tolerance 0.2 (default in fp32: 0.0001), "
        "parity.fp32.answers 0.01 (default in fp32: 0.001)"
    )
    assert spec_parts.ParitySpec().own_limits("int8") == ""
    maps = spec_parts.ParitySpec(features=0.02)
    assert maps.own_limits("bf16") == "parity.features 0.02 (default in bf16: none)"
    assert maps.own_limits("fp32") == "parity.features 0.02 (default in fp32: 0.001)"


@pytest.mark.parametrize("precision", DEFAULTS)
def test_limits_of_a_precision_that_the_task_does_not_read_are_refused(
    project: Path, precision: str
) -> None:
    path = project / "models/lenet5_digits.yaml"
    words = rf"parity\.{precision} of task .* key 'overlap': accepted are tol"
    with pytest.raises(SpecError, match=words):
        spec.load(path, {"parity": {precision: {"overlap": 0.9}}})
    with pytest.raises(SpecError, match=rf"parity\.{precision}\.golden: Extra inputs are not"):
        spec.load(path, {"parity": {precision: {"golden": 0.1}}})


def test_a_network_of_ones_own_is_proven_in_fp32_with_its_source(built: Build) -> None:
    changes = {"precision": "bf16", "runtime": "eager"}
    report = contents(built(**changes).path)[2]
    assert 0 <= report["fp32"]["largest_difference"] < 1e-6


# int8 that loses too much: one bit in the place of eight ---------------------------------------


class OneBit:
    """A stand-in for a runtime's int8: keeps the sign of a weight alone, in all layers but those
    that are to stay in float, until ``enough`` of them stay. Eager exports in no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, enough: int) -> None:
        self.enough, self.kept = enough, list[frozenset[str]]()
        self._export = Eager.export
        monkeypatch.setattr(Eager, "precisions", ("fp32", "int8"))
        monkeypatch.setattr(Eager, "export", self._coarse)

    def _coarse(self, request: ExportRequest) -> None:
        if request.precision == "fp32":
            self._export(request)
            return
        self.kept.append(request.float_layers)
        module: Any = copy.deepcopy(request.module)
        for name in quantise.layers(module) if len(request.float_layers) < self.enough else ():
            if name not in request.float_layers:
                weight = module.get_submodule(name).weight
                with torch.no_grad():
                    weight.copy_(weight.sign() * weight.abs().mean())
        self._export(replace(request, module=module))


def int8(**calibration: Any) -> dict[str, Any]:
    return {
        "precision": "int8",
        "runtime": "eager",
        "calibration": {**CALIBRATION, **calibration},
        "accuracy": ACCURACY,
    }


def eager(project: Path, folder: Path) -> tuple[TaskHandler, Servable]:
    """The eager network as a handler, and alone."""
    model = spec.load(project / "models/lenet5_digits.yaml")
    module, bundle = preparing.prepare(model, project, folder)
    return preparing.reference(bundle, module), module


def ranking(project: Path, folder: Path) -> list[str]:
    """The layers as a build ranks them, the worst first."""
    task, module = eager(project, folder)
    pixels = [np.stack([task.preprocess(Image.open(path))]) for path in random_half(project)]
    return [name for name, _ in quantise.rank(module, pixels)]


def test_int8_that_loses_too_much_names_the_layers_and_builds_nothing(
    built: Build, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantiser = OneBit(monkeypatch, 99)
    with pytest.raises((ParityError, AccuracyError)) as refused:
        built(**int8())
    text = str(refused.value)
    found = re.findall(r"(network\.[\w.]+) \((\d+) dB\)", text)
    assert [name for name, _ in found] == ranking(project, tmp_path)
    decibels = [int(each) for _, each in found]
    assert decibels == sorted(decibels)
    assert text.endswith(f"leave more than 0 of {LAYERS} in fp32 with --keep-fp32 N or auto")
    assert quantiser.kept == [frozenset()]
    assert not list((tmp_path / "store").iterdir())


def test_as_many_layers_stay_in_float_as_are_asked_for(
    built: Build, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantiser = OneBit(monkeypatch, 3)
    worst = ranking(project, tmp_path)
    found = built(**int8(keep_fp32=3))
    assert quantiser.kept == [frozenset(worst[:3])]
    assert contents(found.path)[1].provenance["calibration"]["float_layers"] == worst[:3]
    with pytest.raises(
        (ParityError, AccuracyError), match=f"leave more than 2 of {LAYERS} in fp32"
    ):
        built(**int8(keep_fp32=2), version="2.0")


def test_more_layers_than_there_are_cannot_stay_in_float(
    built: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantiser = OneBit(monkeypatch, 1)
    with pytest.raises(SpecError, match=r"keep_fp32: 6 layers in fp32, of the 5 that int8 could"):
        built(**int8(keep_fp32=6))
    assert quantiser.kept == []


def test_auto_leaves_twice_as_many_until_it_passes(
    built: Build, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantiser = OneBit(monkeypatch, 2)
    worst = ranking(project, tmp_path)
    found = built(**int8(keep_fp32="auto"))
    assert quantiser.kept == [frozenset(worst[:count]) for count in (0, 1, 2)]
    assert contents(found.path)[1].provenance["calibration"]["float_layers"] == worst[:2]


def test_auto_gives_up_at_half_of_all(
    built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantiser = OneBit(monkeypatch, 3)
    with pytest.raises((ParityError, AccuracyError), match=f"with 2 of {LAYERS} in fp32 it still"):
        built(**int8(keep_fp32="auto"))
    assert [len(kept) for kept in quantiser.kept] == [0, 1, 2]
    assert not list((tmp_path / "store").iterdir())


def test_auto_tries_half_of_all_where_doubling_steps_over_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [(f"layer {number}", 1 / (number + 1)) for number in range(11)]
    monkeypatch.setattr(quantise, "rank", lambda *_: layers)
    tried: list[list[str]] = []

    class Exports:
        """Stands for exports, none of which is good enough."""

        part = ""

        def written(self, bundle: Bundle, kept: list[str]) -> None:
            assert bundle.provenance["calibration"]["float_layers"] == kept
            tried.append(kept)

        def proven(self, made: None) -> None:
            raise AccuracyError("it loses too much")

    changes = int8(keep_fp32="auto") | {"runtime": "openvino"}
    model = spec.load(project / "models/lenet5_digits.yaml", changes)
    gate: Any = SimpleNamespace(calibration=[np.zeros(1)], recorded={"pictures": 1})
    exports: Any = Exports()
    module: Any = None
    bundle = preparing.unrecorded(model, project)
    with pytest.raises(AccuracyError, match="; with 5 of 11 in fp32 it still fails$"):
        proving._passing(model, gate, exports, bundle, module)
    assert [len(kept) for kept in tried] == [0, 1, 2, 4, 5]
    assert tried[-1] == [name for name, _ in layers[:5]]


def borderline(task: TaskHandler, folder: Path, digits: list[Path]) -> dict[str, str]:
    """Pictures between two digits, of which eager is just so sure that it is the first."""
    folder.mkdir()
    pictures = [Image.open(path).convert("L").resize((32, 32)) for path in digits]
    for i, j in combinations(range(len(pictures)), 2):
        near, far = 0.0, 1.0
        for _ in range(8):
            middle = (near + far) / 2
            blended = Image.blend(pictures[i], pictures[j], middle)
            first, second = task.answer([pictures[i], blended], top_k=1)
            near, far = (middle, far) if first[0]["label"] == second[0]["label"] else (near, middle)
        Image.blend(pictures[i], pictures[j], near).save(folder / f"{i}{j}.png")
    return {"folder": str(folder)}


def test_an_artifact_that_agrees_on_samples_and_loses_elsewhere_is_stopped(
    built: Build, project: Path, tmp_path: Path
) -> None:
    hard = borderline(
        eager(project, tmp_path)[0], tmp_path / "hard", samples.found(project / DIGITS)
    )
    with pytest.raises(AccuracyError, match=r"loses too much: top-1 .* allowed 0; the layers with"):
        built(**int8() | {"runtime": "openvino", "accuracy": {**hard, "drop": 0.0}})
    assert not list((tmp_path / "store").iterdir())


def test_other_precisions_that_lose_too_much_have_no_layers_to_leave(
    built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantiser = OneBit(monkeypatch, 99)
    monkeypatch.setattr(Eager, "precisions", ("fp32", "bf16"))
    with pytest.raises(ParityError) as refused:
        built(precision="bf16", runtime="eager")
    assert "SQNR" not in str(refused.value)
    assert quantiser.kept == [frozenset()]
    assert not list((tmp_path / "store").iterdir())


# What is refused before anything is made ------------------------------------------------------


@pytest.mark.parametrize("given", [(), ("calibration",), ("accuracy",)])
def test_int8_without_pictures_is_refused(project: Path, given: tuple[str, ...]) -> None:
    folders = {key: {"folder": DIGITS} for key in given}
    changes: dict[str, Any] = {"precision": "int8", "runtime": "openvino", **folders}
    with pytest.raises(SpecError, match=r"int8 needs calibration\.folder.*accuracy\.folder"):
        spec.load(project / "models/lenet5_digits.yaml", changes)


def test_a_runtime_without_int8_is_refused(project: Path) -> None:
    changes = {**int8(), "runtime": "torchscript"}
    with pytest.raises(SpecError, match="torchscript does not compute in int8: accepted are fp32"):
        spec.load(project / "models/lenet5_digits.yaml", changes)
