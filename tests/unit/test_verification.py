"""An archive is proven again against eager, against another archive, and by its own files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from handlers.errors import IntegrityError, SpecError
from marsmith import build, spec, verification
from marsmith.archive import unpack
from marsmith.commands import verify


@pytest.fixture(scope="module")
def store(project: Path, lenet5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet-5 as version 1.0, and its reduced twin of other weights as version 2.0."""
    folder = tmp_path_factory.mktemp("store")
    path = project / "models/lenet5_digits.yaml"
    shutil.copy(lenet5, folder)
    import torch

    state = torch.load(project / "weights/lenet5_digits.pth", weights_only=True)
    last = [key for key in state if key.endswith("weight")][-1]
    # Digits 0 and 1 change places.
    for key in (last, last.replace("weight", "bias")):
        state[key][[0, 1]] = state[key][[1, 0]]
    torch.save(state, folder / "swapped.pth")
    changes: dict[str, Any] = {"version": "2.0", "weights": {"file": str(folder / "swapped.pth")}}
    build.build(spec.load(path, changes), project, folder, tell=print)
    return folder


def asked(project: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    monkeypatch.chdir(project)
    done = CliRunner().invoke(verify.command, list(words))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_an_archive_agrees_with_eager(
    store: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, words = asked(project, monkeypatch, str(store / "lenet5_digits-1.0.mar"))
    assert status == 0
    assert "agrees with eager: 10 of 10 decisions the same" in words


def test_labelled_pictures_give_the_metric(
    store: Path, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for path in (project / "samples/digits").glob("*.png"):
        shutil.copy(path, tmp_path)
    rows = [f"{path.name},{path.stem}" for path in sorted(tmp_path.glob("*.png"))]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    archive = str(store / "lenet5_digits-1.0.mar")
    status, words = asked(project, monkeypatch, archive, "--images", str(tmp_path), "--json")
    [verdict] = json.loads(words)
    assert (status, verdict["accuracy"]["metric"], verdict["accuracy"]["truth"]) == (
        0,
        "top-1",
        "labels",
    )
    assert verdict["accuracy"]["drop"] == 0


def test_another_archive_that_answers_otherwise_is_named(
    store: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, other = (str(store / f"lenet5_digits-{version}.mar") for version in ("2.0", "1.0"))
    status, words = asked(project, monkeypatch, archive, "--against", other)
    assert status == 1
    assert "DIFFERS" in words
    assert "wrong: 0.png: top-1 is 1, expected 0" in words


def test_eager_with_other_weights_is_no_reference(
    store: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpecError, match="the archive was made of weights with sha256"):
        asked(project, monkeypatch, str(store / "lenet5_digits-2.0.mar"))
    weights = str(store / "swapped.pth")
    archive = str(store / "lenet5_digits-2.0.mar")
    assert asked(project, monkeypatch, archive, "--weights", weights)[0] == 0


def test_a_changed_archive_is_refused_before_anything_runs(store: Path, tmp_path: Path) -> None:
    unpack(store / "lenet5_digits-1.0.mar", tmp_path)
    (tmp_path / "marsmith.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"marsmith\.json"):
        verification.opened(tmp_path)
