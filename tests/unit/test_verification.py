"""An archive is proven again against eager, against another archive, and by its own files."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from handlers.closeness import DEFAULTS
from handlers.errors import IntegrityError, RequestError, SpecError, WeightsError
from handlers.runtimes import Array, Arrays
from handlers.task import TaskHandler
from marsmith import build, foreign, quantise, samples, spec, subject, verification, weights
from marsmith.accuracy import Evaluation
from marsmith.archive import read_json, unpack
from marsmith.asking import Asked
from marsmith.client import Reply
from marsmith.commands import verify
from marsmith.spec_parts import AccuracySpec, WeightsSpec
from marsmith.verification import Verdict

Model = Callable[[Array], Arrays]


@pytest.fixture(scope="module")
def labelled(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ten digits with their labels."""
    folder = tmp_path_factory.mktemp("labelled")
    for path in (project / "samples/digits").glob("*.png"):
        shutil.copy(path, folder)
    rows = [f"{path.name},{path.stem}" for path in sorted(folder.glob("*.png"))]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    return folder


@pytest.fixture(scope="module")
def store(
    project: Path, lenet5: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """LeNet-5 as version 1.0, and as 2.0 one of other weights, whose mean is not the model file's;
    the artifact of 1.0 as somebody else's."""
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
    changes["input"] = {"color": "gray", "resize": [32, 32], "mean": [0.33], "std": [0.359]}
    build.build(spec.load(path, changes), project, folder, tell=print)
    unpack(lenet5, folder / "unpacked")
    fields = theirs(folder, accuracy={"folder": str(labelled)})
    with pytest.MonkeyPatch.context() as patch:
        # These tests themselves load it.
        patch.setattr(build.smoke, "prepared", lambda *_: nullcontext(lambda path: None))
        build.build(spec.parse(fields, "theirs"), project, folder, tell=print)
    return folder


def theirs(folder: Path, **changes: Any) -> dict[str, Any]:
    """The model file of an artifact that somebody else exported, in the store."""
    fields: dict[str, Any] = {"name": "theirs", "task": "image-classification", **changes}
    fields["artifact"] = {"file": str(folder / "unpacked/model.pt")}
    fields["input"] = {"color": "gray", "resize": [32, 32], "layout": "nhwc", "dtype": "uint8"}
    labels = list("0123456789")
    return {**fields, "outputs": "probabilities", "labels": labels, "samples": "samples/digits"}


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
    assert "parity on 8 pictures at batches [1, 2, 8]: outputs within" in words


def test_outputs_are_compared_in_batches_as_well(
    store: Path, project: Path, tmp_path: Path
) -> None:
    unpack(store / "lenet5_digits-1.0.mar", tmp_path)
    task = verification.opened(tmp_path)
    right, files = task.model, samples.files(project / "samples/digits", "--images")
    # A stand-in for an artifact that mixes up the pictures of a batch.
    task.model = lambda pixels: tuple(output[::-1] for output in right(pixels))
    verdict = verification.compare(task, verification.opened(tmp_path), files, "itself")
    assert verdict.same == len(files)
    assert verdict.parity is None
    assert "as a build compares: sample 0, batch of 2, output 0: differs from" in verdict.wrong[0]


@pytest.mark.parametrize("broken", ["mixed up", "not a number", "another class", "failing"])
def test_the_metric_of_int8_excuses_what_moved_and_not_what_is_broken(
    store: Path, project: Path, labelled: Path, tmp_path: Path, broken: str
) -> None:
    unpack(store / "lenet5_digits-1.0.mar", tmp_path)
    task, reference = verification.opened(tmp_path), verification.opened(tmp_path)
    files = samples.files(labelled, "--images")
    spec = {"accuracy": {"folder": "digits", "drop": 1.0}}
    task.bundle = replace(task.bundle, precision="int8", provenance={"spec": spec})
    quantise.write(quantise.digests(files[:1]), tmp_path)
    right = task.model

    def model(pixels: Any) -> Any:
        outputs = right(pixels)
        if broken == "failing" and len(pixels) > 1:
            raise RuntimeError("no memory")
        if broken == "mixed up":
            return tuple(output[::-1] for output in outputs)
        if broken == "not a number" and len(pixels) == 2:
            return tuple(np.full_like(output, np.nan) for output in outputs)
        # Too far for int8, and nearer to the right answer than to any other picture's.
        return tuple(output * 0.9 for output in outputs) if broken == "another class" else outputs

    task.model = model
    compared = verification.compare(task, reference, files, "eager")
    verdict = verification.measured(compared, task, reference, labelled, None, tmp_path)
    assert verdict.metric_decides
    assert verdict.passed == (broken == "another class")
    assert not compared.passed


def not_finite(task: TaskHandler, picture: Path) -> Model:
    """The model of ``task``, which computes NaN for one picture alone."""
    right, lone = task.model, task.preprocess(samples.opened(picture, 10**8))

    def model(pixels: Array) -> Arrays:
        scores = right(pixels)[0].copy()
        scores[[np.array_equal(each, lone) for each in pixels]] = np.nan
        return (scores,)

    return model


NOT_FINITE = "the model's output for this picture is not finite"


@pytest.mark.parametrize("broken", ["the artifact", "b.mar"])
def test_a_picture_without_an_answer_is_part_of_the_verdict(
    store: Path, labelled: Path, tmp_path: Path, broken: str
) -> None:
    unpack(store / "lenet5_digits-1.0.mar", tmp_path)
    task, reference = verification.opened(tmp_path), verification.opened(tmp_path)
    files = samples.files(labelled, "--images")
    side = task if broken == "the artifact" else reference
    side.model = not_finite(side, files[3])
    verdict = verification.compare(task, reference, files, "b.mar")
    verdict = verification.measured(verdict, task, reference, labelled, None, tmp_path)
    parity = {
        "the artifact": "sample 3, batch of 1, output 0: not finite where b.mar is",
        "b.mar": "the outputs of b.mar itself are not finite: look at the weights",
    }
    assert verdict.wrong == [
        f"3.png: {broken} fails: {NOT_FINITE}",
        f"as a build compares: {parity[broken]}",
        f"the metric: {broken} does not answer one of 0.png to 9.png: {NOT_FINITE}",
    ]
    assert (verdict.pictures, verdict.same, verdict.accuracy) == (10, 9, None)


def test_a_reference_that_fails_on_a_batch_is_part_of_the_verdict(
    store: Path, labelled: Path, tmp_path: Path
) -> None:
    unpack(store / "lenet5_digits-1.0.mar", tmp_path)
    task, reference = verification.opened(tmp_path), verification.opened(tmp_path)

    def model(pixels: Array) -> Arrays:
        raise RuntimeError("no memory")

    reference.model = model
    files = samples.files(labelled, "--images")
    wrong = verification.compare(task, reference, files, "b.mar").wrong
    assert len(wrong) == len(files) + 1
    assert wrong[-1] == "as a build compares: b.mar fails on a sample: RuntimeError: no memory"


def test_a_verdict_is_printed_where_a_picture_has_no_answer(
    store: Path, project: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = verification.opened

    def broken(folder: Path) -> TaskHandler:
        task = opened(folder)
        task.model = not_finite(task, labelled / "3.png")
        return task

    monkeypatch.setattr(verification, "opened", broken)
    archive = str(store / "lenet5_digits-1.0.mar")
    status, words = asked(project, monkeypatch, archive, "--images", str(labelled), "--json")
    [verdict] = json.loads(words)
    assert (status, verdict["pictures"], verdict["same"]) == (1, 10, 9)
    assert verdict["wrong"][0] == f"3.png: the artifact fails: {NOT_FINITE}"


def test_an_archive_is_proven_where_its_model_file_is_not(
    store: Path, tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = str(store / "lenet5_digits-1.0.mar")
    weights = str(project / "weights/lenet5_digits.pth")
    status, words = asked(tmp_path, monkeypatch, archive, "--weights", weights)
    assert (status, "agrees with eager: 2 of 2 decisions the same" in words) == (0, True)
    with pytest.raises(WeightsError, match=r"are not in this project: give their file with --wei"):
        asked(tmp_path, monkeypatch, archive)
    with pytest.raises(SpecError, match=r"^--images: there is no folder .*none"):
        asked(tmp_path, monkeypatch, archive, "--weights", weights, "--images", "none")
    # A model file names them; others beside it, which nobody asks for, are broken.
    models = tmp_path / "models"
    models.mkdir()
    (models / "mine.yaml").write_text(f"weights: {{file: {weights}}}\nno_such_key: 1\n")
    (models / "broken.yaml").write_text("weights: {file: [\n")
    (models / "list.yaml").write_text("- weights\n")
    status, words = asked(tmp_path, monkeypatch, archive)
    assert (status, "agrees with eager: 2 of 2 decisions the same" in words) == (0, True)


def test_weights_of_torchvision_are_had_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    model = spec.load(project / "models/mobilenet_v2.yaml")
    name = weights.torchvision_weights(model).url.rpartition("/")[2]
    # As an archive tells of them; no file here has this sha256.
    recorded = {"torchvision": model.weights.torchvision, "file": name, "sha256": "0" * 64}
    found = subject._found(model.model_copy(update={"weights": WeightsSpec(**recorded)}))
    assert (found.file, found.sha256) == (None, "0" * 64)


def test_without_a_sha256_no_other_file_stands_for_the_weights(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = spec.load(project / "models/lenet5_digits.yaml")
    named = model.model_copy(update={"weights": WeightsSpec(file="elsewhere/lenet5.pth")})
    # One of the same name, which may be of anything.
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/lenet5.pth").touch()
    monkeypatch.chdir(tmp_path)
    assert subject._found(named) == named.weights


def test_the_artifact_of_others_is_compared_with_itself(
    store: Path, project: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, images = str(store / "theirs-1.0.mar"), ("--images", str(labelled))
    status, words = asked(project, monkeypatch, archive, *images)
    assert status == 0
    assert "agrees with itself, one by one: 10 of 10 decisions the same" in words
    assert "top-1 1.0000 on 10 pictures, 95 % interval 1.0000 to 1.0000 (there is no fp32" in words
    with pytest.raises(SpecError, match="there is no PyTorch network"):
        asked(project, monkeypatch, archive, "--against", "eager")
    with pytest.raises(SpecError, match="--max-drop goes with eager alone"):
        asked(project, monkeypatch, archive, *images, "--max-drop", "0.1")


def test_the_metric_of_an_artifact_of_others_is_recorded(
    store: Path, project: Path, labelled: Path
) -> None:
    measured = read_json(store / "theirs-1.0.mar", "parity.json")["accuracy"]
    assert (measured["artifact"], measured["truth"], measured["pictures"]) == (1.0, "labels", 10)
    assert (measured["reference"], measured["drop"], measured["allowed"]) == (None, None, None)
    made_of = read_json(store / "theirs-1.0.mar", "marsmith.json")["provenance"]["spec"]
    assert made_of["accuracy"] == {"folder": labelled.name, "count": None, "seed": 0}
    plain = spec.parse(theirs(store, accuracy={"folder": "samples/digits"}), "theirs")
    with pytest.raises(SpecError, match="its pictures have no labels"):
        foreign.measured(plain, project, verification.opened(store / "unpacked"))
    for words, given in {
        r"accuracy.drop .--max-drop.: not for an": {"accuracy": {"folder": "x", "drop": 0.1}},
        "calibration: not for an artifact": {"calibration": {"folder": "x"}},
    }.items():
        with pytest.raises(SpecError, match=words):
            spec.parse(theirs(store, **given), "theirs")


@pytest.mark.parametrize(
    ("built", "said", "allowed"), [(None, None, 0.01), (0.3, None, 0.3), (0.3, 0.2, 0.2)]
)
def test_int8_is_measured_as_it_was_built(
    store: Path,
    project: Path,
    labelled: Path,
    tmp_path: Path,
    built: float | None,
    said: float | None,
    allowed: float,
) -> None:
    unpack(store / "lenet5_digits-1.0.mar", tmp_path)
    task, files = verification.opened(tmp_path), samples.files(labelled, "--images")
    spec = {"accuracy": {"folder": "digits", **({} if built is None else {"drop": built})}}
    # Stands for an int8 archive, whose build takes long.
    task.bundle = replace(task.bundle, precision="int8", provenance={"spec": spec})
    verdict = Verdict("eager", 10, 10, 0.0, [])
    with pytest.raises(SpecError, match="has no calibration.json, which tells the pictures"):
        verification.measured(verdict, task, task, labelled, said, tmp_path)
    quantise.write(quantise.digests(files[:4]), tmp_path)
    found = verification.measured(verdict, task, task, labelled, said, tmp_path).accuracy
    assert found is not None
    assert (found.pictures, found.allowed) == (6, allowed)


def test_the_metric_is_measured_on_what_the_archive_says_was_drawn(
    store: Path, project: Path, labelled: Path, tmp_path: Path
) -> None:
    unpack(store / "lenet5_digits-1.0.mar", tmp_path)
    task, verdict = verification.opened(tmp_path), Verdict("eager", 10, 10, 0.0, [])
    for seed in (0, 3):
        built = AccuracySpec(folder="digits", count=4, seed=seed)
        task.bundle = replace(task.bundle, provenance={"spec": {"accuracy": built.model_dump()}})
        found = verification.measured(verdict, task, task, labelled, None, tmp_path).accuracy
        here = built.model_copy(update={"folder": str(labelled)})
        wanted = Evaluation.of(here, Path(), task).digest
        assert found is not None
        assert (found.pictures, found.data) == (4, wanted)


def test_what_the_reference_was_calibrated_with_measures_neither(
    store: Path,
    project: Path,
    labelled: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive, files = store / "lenet5_digits-1.0.mar", samples.files(labelled, "--images")
    opened = verification.opened

    def int8(folder: Path) -> Any:
        """Stands for one whose reference is of int8, whose build takes long."""
        task = opened(folder)
        if folder.name == "other":
            task.bundle = replace(task.bundle, precision="int8")
            quantise.write(quantise.digests(files[:4]), folder)
        return task

    monkeypatch.setattr(verification, "opened", int8)
    words = (str(archive), "--against", str(archive), "--images", str(labelled), "--json")
    [verdict] = json.loads(asked(project, monkeypatch, *words)[1])
    assert verdict["accuracy"]["pictures"] == 6


def test_two_of_different_tasks_are_refused(store: Path, project: Path, tmp_path: Path) -> None:
    unpack(store / "lenet5_digits-1.0.mar", tmp_path)
    task, other = verification.opened(tmp_path), verification.opened(tmp_path)
    other.bundle = replace(other.bundle, task="semantic-segmentation")
    files = samples.files(project / "samples/digits", "--images")
    words = "b.mar is for semantic-segmentation and lenet5_digits for image-classification: compare"
    with pytest.raises(SpecError, match=words):
        verification.compare(task, other, files, "b.mar")


def test_labelled_pictures_give_the_metric(
    store: Path, project: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = str(store / "lenet5_digits-1.0.mar")
    status, words = asked(project, monkeypatch, archive, "--images", str(labelled), "--json")
    [verdict] = json.loads(words)
    assert (status, verdict["accuracy"]["metric"], verdict["accuracy"]["truth"]) == (
        0,
        "top-1",
        "labels",
    )
    assert verdict["accuracy"]["drop"] == 0


@pytest.mark.parametrize("drop", ["2", "-0.1", "nan"])
def test_a_drop_that_no_metric_has_is_refused(
    store: Path, project: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch, drop: str
) -> None:
    archive = str(store / "lenet5_digits-1.0.mar")
    with pytest.raises(SpecError, match=f"--max-drop {drop}: write a share from 0 to 1"):
        asked(project, monkeypatch, archive, "--images", str(labelled), "--max-drop", drop)


def test_another_archive_that_answers_otherwise_is_named(
    store: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, other = (str(store / f"lenet5_digits-{version}.mar") for version in ("2.0", "1.0"))
    with pytest.raises(SpecError, match="--weights goes with eager alone"):
        asked(project, monkeypatch, archive, "--against", other, "--weights", "w.pth")
    status, words = asked(project, monkeypatch, archive, "--against", other)
    assert status == 1
    assert "DIFFERS" in words
    assert "wrong: 0.png: top-1 is 1, expected 0" in words


def test_eager_with_other_weights_is_no_reference(
    store: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, weights = str(store / "lenet5_digits-2.0.mar"), str(store / "swapped.pth")
    others = str(project / "weights/lenet5_digits.pth")
    with pytest.raises(WeightsError, match="the archive was made of weights with sha256"):
        asked(project, monkeypatch, archive, "--weights", others)
    with pytest.raises(WeightsError, match="no weights at"):
        asked(project, monkeypatch, archive, "--weights", "none.pth")
    # With the mean of the archive, and not that which the model file has today.
    assert asked(project, monkeypatch, archive, "--weights", weights)[0] == 0


def test_a_changed_archive_is_refused_before_anything_runs(store: Path, tmp_path: Path) -> None:
    unpack(store / "lenet5_digits-1.0.mar", tmp_path)
    (tmp_path / "marsmith.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"marsmith\.json"):
        verification.opened(tmp_path)


def test_large_photographs_are_decoded_as_the_server_does(
    store: Path, project: Path, tmp_path: Path
) -> None:
    unpack(store / "lenet5_digits-1.0.mar", tmp_path)
    task = verification.opened(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.jpg", quality=95)
    read: list[Any] = []
    preprocess = task.preprocess
    task.preprocess = lambda given: (read.append(given), preprocess(given))[1]  # type: ignore[method-assign]
    [answer] = verification._as_served(task, tmp_path / "large.jpg")
    assert answer[0]["label"]
    # At an eighth of its size, and as large as it is for those who ask.
    assert read[0].pixels.shape[0] < 1500
    assert read[0].size == (1500, 1500)


# Without PyTorch ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchless(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet-5 for a runtime that does without PyTorch."""
    changes = {"runtime": "onnx", "version": "3.0"}
    model = spec.load(project / "models/lenet5_digits.yaml", changes)
    built = build.build(model, project, tmp_path_factory.mktemp("torchless"), tell=print)
    return built.path


# As an environment that has no torch does.
WITHOUT = (
    "import sys; "
    "sys.modules |= dict.fromkeys(('torch', 'torchvision', 'torchmetrics')); "
    "from marsmith.cli import main; main()"
)


def without_torch(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, "verify", *words]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)


def test_what_needs_no_torch_is_proven_without_it(
    torchless: Path, project: Path, labelled: Path
) -> None:
    for against in ("itself", str(torchless)):
        words = (str(torchless), "--against", against, "--images", str(labelled), "--json")
        done = without_torch(project, *words)
        assert done.returncode == 0, done.stderr
        [verdict] = json.loads(done.stdout)
        assert (verdict["same"], verdict["accuracy"]["artifact"]) == (10, 1.0)
        assert verdict["parity"]["batch_sizes"] == [1, 2, 8]


def test_what_needs_torch_says_so_in_one_line_where_there_is_none(
    torchless: Path, store: Path, project: Path
) -> None:
    ours, theirs = str(torchless), str(store / "lenet5_digits-1.0.mar")
    for words, said in (
        ([ours], "eager needs PyTorch, which is not installed here: install requirements.txt, or"),
        ([theirs], "lenet5_digits-1.0.mar: its worker needs PyTorch, which is not installed here"),
        ([ours, "--against", theirs], "lenet5_digits-1.0.mar: its worker needs PyTorch, which is"),
    ):
        done = without_torch(project, *words)
        assert (done.returncode, done.stdout) == (1, "")
        [line] = done.stderr.splitlines()
        assert line.startswith(f"error: {said}")


def test_an_archive_of_ours_is_compared_with_itself(
    store: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = str(store / "lenet5_digits-1.0.mar")
    status, words = asked(project, monkeypatch, archive, "--against", "itself")
    assert status == 0
    assert "agrees with itself, one by one: 10 of 10 decisions the same" in words
    with pytest.raises(SpecError, match="--weights goes with eager alone"):
        asked(project, monkeypatch, archive, "--against", "itself", "--weights", "w.pth")


# A server that runs the same artifact ----------------------------------------------------------


class Server:
    """Stands for ``Asker``: answers as the handler does, with the scores that ``model`` gives."""

    def __init__(self, task: TaskHandler, model: Model) -> None:
        self._task = copy.copy(task)
        self._task.model = model

    def __call__(self, *_: Any) -> Server:
        return self

    def ask(self, path: Path) -> Asked:
        [answer] = verification._as_served(self._task, path)
        if isinstance(answer, RequestError):
            return Asked(path, None, str(answer))
        return Asked(path, Reply(200, "application/json", json.dumps(answer).encode()), None)

    def close(self) -> None:
        """There is nothing to close."""


def scored(*scores: float, further: float = 0.0) -> Model:
    """The same scores for all pictures; in batches the best is ``further`` off."""

    def model(pixels: Array) -> Arrays:
        found = np.tile(np.float32([*scores, *[0.0] * (10 - len(scores))]), (len(pixels), 1))
        found[:, 0] -= further if len(pixels) > 1 else 0.0
        return (found,)

    return model


@pytest.fixture
def asked_server(
    unpacked: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Verdict]]:
    """What ``served`` says of an archive in a precision, its model, and that of the server."""

    def ask(precision: str, ours: Model, theirs: Model) -> list[Verdict]:
        task = verification.opened(unpacked)
        closeness = DEFAULTS[precision]
        task.bundle = replace(task.bundle, precision=precision, closeness=closeness)
        task.model = ours
        monkeypatch.setattr(verification, "Asker", Server(task, theirs))
        files = samples.files(labelled, "--images")
        return verification.served(task, lambda: pytest.fail("nobody connects"), files)

    return ask


def test_a_server_s_other_decision_is_told_whatever_the_precision(
    asked_server: Callable[..., list[Verdict]],
) -> None:
    # A margin of 0.5, and no score that moves as far as int8 may be from eager.
    right, swapped = scored(0.6, 0.1, 0.1), scored(0.35, 0.4, 0.1)
    for verdict in asked_server("int8", right, swapped):
        assert (verdict.same, verdict.passed) == (0, False)
        assert len(verdict.moved) == verdict.pictures
        words = "0.png: top-1 is 1, expected 0, scores moved by 0.3 (allowed 0.0001)"
        assert verdict.moved[0] == words
    assert all(verdict.passed for verdict in asked_server("int8", right, right))


@pytest.mark.parametrize(
    ("precision", "further", "off", "passes"),
    [
        ("bf16", 0.004, 0.007, True),
        ("bf16", 0.004, 0.009, False),
        ("bf16", 0.0, 0.0002, False),
        # A golden request may move by 0.2 in int8 and by 0.001 in fp32, and no answer further.
        ("int8", 0.2, 0.19, True),
        ("int8", 0.2, 0.21, False),
        ("fp32", 0.002, 0.0009, True),
        ("fp32", 0.002, 0.0011, False),
    ],
)
def test_a_server_s_scores_move_as_far_as_batches_move_them(
    asked_server: Callable[..., list[Verdict]],
    precision: str,
    further: float,
    off: float,
    passes: bool,
) -> None:
    found = asked_server(precision, scored(0.9, 0.1, further=further), scored(0.9 - off, 0.1))
    assert [verdict.passed for verdict in found] == [passes, passes]


def test_a_picture_that_fails_in_process_is_part_of_the_verdict_on_a_server(
    asked_server: Callable[..., list[Verdict]], unpacked: Path, labelled: Path
) -> None:
    task = verification.opened(unpacked)
    for verdict in asked_server("fp32", not_finite(task, labelled / "3.png"), task.model):
        lines = [line for line in verdict.wrong if line.startswith("3.png: ")]
        assert lines == verdict.wrong
        assert set(lines) == {f"3.png: in process: {NOT_FINITE}"}
        assert verdict.same == verdict.pictures - len(lines)


def test_a_single_golden_picture_proves_what_it_can(
    store: Path, project: Path, tmp_path: Path
) -> None:
    unpack(store / "lenet5_digits-1.0.mar", tmp_path)
    task = verification.opened(tmp_path)
    [alone, *_] = samples.files(project / "samples/digits", "--images")
    verdict = verification.compare(task, verification.opened(tmp_path), [alone], "itself")
    assert verdict.passed
    assert (verdict.same, verdict.parity) == (1, None)
