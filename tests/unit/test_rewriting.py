"""An artifact is proven as it was exported, and again since its runtime has rewritten it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from handlers.errors import ParityError
from handlers.runtimes import ExportRequest
from handlers.runtimes.torchscript import TorchScript
from marsmith import build, spec
from marsmith.archive import unpack
from marsmith.build import Built

Build = Callable[..., Built]


@pytest.fixture
def built(project: Path, tmp_path: Path) -> Build:
    """Build the digits' LeNet-5 on TorchScript with changes of its model file."""

    def make(**changes: Any) -> Built:
        model = spec.load(project / "models/lenet5_digits.yaml", {"runtime": "torchscript"})
        model = model.model_copy(update=changes)
        return build.build(model, project, tmp_path / "store", tell=lambda _: None)

    return make


def _negated(request: ExportRequest) -> Any:
    """The request for a network of other weights."""
    import copy

    module = copy.deepcopy(request.module)
    with torch.no_grad():
        for weights in module.parameters():
            weights.neg_()
    return replace(request, module=module)


def test_both_reports_travel_in_the_archive(built: Build, tmp_path: Path) -> None:
    found = built()
    assert found.proof.exported == found.proof.parity
    unpack(found.path, tmp_path / "archive")
    report = json.loads((tmp_path / "archive/parity.json").read_text())
    assert report["exported"] == found.proof.parity.to_json()
    assert found.to_json()["exported"] == report["exported"]


def test_a_runtime_that_rewrites_nothing_has_one_report(built: Build) -> None:
    assert built(runtime="eager", runtime_options={}).proof.exported is None


def test_what_rewriting_breaks_is_refused_and_said_to_have_been_right(
    built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = TorchScript.export
    monkeypatch.setattr(TorchScript, "finish", lambda request: export(_negated(request)))
    words = (
        "^right as it was exported, and wrong since runtime torchscript has rewritten it: sample"
    )
    with pytest.raises(ParityError, match=words):
        built()
    assert not list((tmp_path / "store").iterdir())


def test_what_was_exported_wrong_is_refused_before_it_is_rewritten(
    built: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = TorchScript.export
    rewritten: list[ExportRequest] = []
    monkeypatch.setattr(TorchScript, "export", lambda request: export(_negated(request)))
    monkeypatch.setattr(TorchScript, "finish", rewritten.append)
    with pytest.raises(ParityError, match="^sample 0, batch of 1, output 0: differs from eager"):
        built()
    assert not rewritten


def test_few_bits_are_made_of_what_was_right_before_and_after_it_was_rewritten(
    built: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = TorchScript.export
    monkeypatch.setattr(TorchScript, "finish", lambda request: export(_negated(request)))
    words = "^right as it was exported, .* rewritten it: in fp32, before bf16 is made of it: sample"
    with pytest.raises(ParityError, match=words):
        built(precision="bf16")
