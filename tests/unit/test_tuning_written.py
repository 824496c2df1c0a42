"""What tuning writes into model files and serving profiles."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tuned import HOST, MODEL, OPTIONS, point

from handlers.errors import SpecError
from handlers.foreign import Contract
from marsmith import host_profile, spec, trials
from marsmith.commands import build
from marsmith.subject import Subject, of_archive
from marsmith.tuning import writing
from marsmith.tuning.given import ArchiveSession
from marsmith.tuning.points import BATCHES, Objective
from marsmith.tuning.serving import Load


def test_a_model_file_keeps_all_but_the_keys_changed(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MODEL)
    model = spec.load(path)
    keys = writing.changes(model, point(runtime="openvino", workers=2, threads=1), 2)
    writing.to_model_file(path, keys)
    text = path.read_text()
    for comment in (line.partition("#")[2] for line in MODEL.splitlines() if "slower" not in line):
        assert comment in text
    assert text.startswith('# A model of the shop.\nname: "m"  # its name\n')
    assert "version: '2.0'" in text
    found = spec.load(path)
    assert (found.runtime, found.precision, found.runtime_options) == ("openvino", "fp32", {})
    expected = {"workers": 2, "threads": 1, "batch_size": 8, "max_batch_delay": 1, "cores": 2}
    assert found.serving.model_dump(exclude_unset=True) == {"queue_size": 50, **expected}
    writing.to_model_file(path, keys)
    assert path.read_text() == text


def test_options_of_the_runtime_stay_with_it(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MODEL)
    keys = writing.changes(spec.load(path), point(runtime="torchscript"), 2)
    writing.to_model_file(path, keys)
    assert "  method: trace  # scripts are slower\n# How it is served:\n" in path.read_text()


def test_options_under_a_name_stay_and_a_chosen_one_is_written(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MODEL.replace("  method", "  openvino: {streams: one}\n  method"))
    options = {"streams": "per-thread"}
    keys = writing.changes(spec.load(path), point(runtime="openvino", options=options), 2)
    writing.to_model_file(path, keys)
    assert "\n# How it is served:\nserving:" in path.read_text()
    found = spec.load(path)
    assert found.runtime_options == {"openvino": {"streams": "one"}, **options}
    assert found.options == options
    profile = tmp_path / "host.yaml"
    writing.to_profile(profile, "m", keys, HOST)
    path.write_text(MODEL)
    assert spec.load(path, host_profile.overrides(profile, "m")).options == options
    given = {**dict.fromkeys(OPTIONS), "profile": profile, "runtime": "onnx"}
    assert build._spec(str(path), given, Path()).options == {}


def test_an_option_leaves_what_else_a_profile_says_of_its_pictures(tmp_path: Path) -> None:
    path, profile = tmp_path / "m.yaml", tmp_path / "host.yaml"
    path.write_text(f"{MODEL}accuracy: {{folder: of the file, count: 5}}\n")
    int8 = {"calibration": {"folder": "a", "keep_fp32": 2}, "accuracy": {"folder": "b"}}
    int8["accuracy"] |= {"drop": 0.03}
    chosen = point(runtime="openvino", precision="int8")
    writing.to_profile(profile, "m", writing.changes(spec.load(path, int8), chosen, 2), HOST)
    given = {**dict.fromkeys(OPTIONS), "profile": profile}
    given |= {"evaluate": tmp_path / "c", "calibrate_count": 7}
    found = build._spec(str(path), given, Path())
    assert found.accuracy
    assert found.calibration
    said = [each.model_dump(exclude_unset=True) for each in (found.accuracy, found.calibration)]
    assert said == [
        {"folder": str(tmp_path / "c"), "drop": 0.03, "count": 5},
        {"folder": "a", "keep_fp32": 2, "count": 7},
    ]


def test_a_queue_that_was_too_short_for_the_batch_is_written_as_measured(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MODEL.replace("queue_size: 50", "queue_size: 4"))
    writing.to_model_file(path, writing.changes(spec.load(path), point(batch_size=16), 2))
    assert spec.load(path).serving.queue_size == 16


def test_auto_takes_a_precision_that_the_runtime_of_the_file_has_not(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    other = MODEL.replace("runtime_options:", "runtime: openvino\nruntime_options:")
    path.write_text(other.replace("  method: trace", "  streams: one"))
    given = {**dict.fromkeys(OPTIONS), "runtime": "auto", "precision": "fp16"}
    found = build._spec(str(path), given, Path())
    assert found.precision == "fp16"
    assert ("openvino", "fp16") not in trials.pairs(found, ["fp16"])
    with pytest.raises(SpecError, match="precision: Input should be"):
        build._spec(str(path), {**given, "precision": "fp8"}, Path())


def test_every_model_of_the_project_can_be_written(project: Path, tmp_path: Path) -> None:
    for source in sorted((project / "models").glob("*.yaml")):
        path = tmp_path / source.name
        shutil.copy(source, path)
        before = spec.load(path)
        keys = writing.changes(before, point(runtime="onnx", workers=2, threads=1), 2)
        writing.to_model_file(path, keys)
        changed = set(keys) | {"runtime_options"}
        after = spec.load(path)
        assert after.model_dump(exclude=changed) == before.model_dump(exclude=changed), source


def test_int8_is_written_with_its_pictures(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MODEL)
    folders = {"calibration": {"folder": "a"}, "accuracy": {"folder": "b", "drop": 0.02}}
    model = spec.load(path, folders)
    chosen = point(runtime="openvino", precision="int8")
    writing.to_model_file(path, writing.changes(model, chosen, 2))
    assert spec.load(path).accuracy == model.accuracy
    profile = tmp_path / "host.yaml"
    writing.to_profile(profile, "m", writing.changes(model, chosen, 2), HOST)
    path.write_text(MODEL)
    assert spec.load(path, host_profile.overrides(profile, "m")).accuracy == model.accuracy


def _session(found: Subject, folder: Path, made_of: spec.ModelSpec) -> ArchiveSession:
    """A session of an archive that asks no picture."""
    return ArchiveSession(
        spec=made_of,
        root=folder,
        load=Load([], 1.0),
        objective=Objective(),
        budget=1.0,
        tell=lambda words: None,
        advance=lambda done, most: None,
        of=found,
    )


def test_the_profile_of_an_int8_archive_leaves_the_pictures_to_the_model_file(
    unpacked: Path, tmp_path: Path
) -> None:
    # Of a folder elsewhere an archive tells the name alone.
    folders = {"calibration": {"folder": "name"}, "accuracy": {"folder": "name"}}
    found = of_archive(tmp_path / "m.mar", unpacked)
    made_of = found.spec.model_dump(exclude_unset=True)
    made_of |= {"runtime": "openvino", "precision": "int8", **folders}
    session = _session(found, tmp_path, spec.parse(made_of, "m"))
    keys = writing.changes(session.spec, point(runtime="openvino", precision="int8"), 2)
    assert keys.keys() == {"runtime", "precision", "serving"}


@pytest.fixture
def session(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The search for an archive, which is not loaded."""
    loaded = SimpleNamespace(resident_bytes=10**6, device="cpu")
    monkeypatch.setattr("marsmith.tuning.given.artifacts.describe", lambda *_, **__: loaded)
    found = of_archive(tmp_path / "m.mar", unpacked)
    return _session(found, tmp_path, found.spec)


def test_no_batch_is_tried_that_an_artifact_does_not_take(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[int, ...]] = []
    monkeypatch.setattr(session, "_serve", lambda _, __, sizes: tried.append(sizes))
    for most, sizes in ((4, (4, 1)), (8, (8, 1, 4)), (32, (32, *BATCHES))):
        session._most = most
        session.search()
        assert tried.pop() == sizes


def test_the_points_of_an_artifact_of_others_claim_no_precision(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(session, "_serve", lambda pairs, *_: served.extend(pairs))
    session.search()
    session.bundle = replace(session.bundle, foreign=Contract())
    session.search()
    runtime = session.bundle.runtime
    assert served == [(runtime, "fp32"), (runtime, "as exported")]


def test_who_may_read_a_model_file_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MODEL)
    path.chmod(0o640)
    writing.to_model_file(path, writing.changes(spec.load(path), point(), 2))
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_could_not_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no room")

    path = tmp_path / "m.yaml"
    path.write_text(MODEL)
    keys = writing.changes(spec.load(path), point(), 2)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no room"):
        writing.to_model_file(path, keys)
    assert path.read_text() == MODEL
    assert os.listdir(tmp_path) == ["m.yaml"]


def test_a_mistake_leaves_the_model_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MODEL)
    keys = writing.changes(spec.load(path), point(runtime="nothing"), 2)
    with pytest.raises(SpecError, match="nothing"):
        writing.to_model_file(path, keys)
    assert path.read_text() == MODEL
    assert os.listdir(tmp_path) == ["m.yaml"]


def test_a_profile_has_models_of_one_kind_of_host(tmp_path: Path) -> None:
    path, file = tmp_path / "profiles/host.yaml", tmp_path / "m.yaml"
    file.write_text(MODEL)
    keys = writing.changes(spec.load(file), point(runtime="onnx"), 2)
    writing.to_profile(path, "m", keys, HOST)
    writing.to_profile(path, "n", {**keys, "precision": "bf16"}, HOST)
    assert yaml.safe_load(path.read_text())["host"] == HOST
    found = spec.load(file, host_profile.overrides(path, "m"))
    assert (found.runtime, found.serving.queue_size, found.serving.batch_size) == (
        "onnx",
        50,
        8,
    )
    with pytest.raises(SpecError, match=r"has no model x \(known are m, n\)"):
        host_profile.overrides(path, "x")
    with pytest.raises(SpecError, match="give another file"):
        writing.to_profile(path, "m", keys, {**HOST, "cores": 64})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1]", "is no profile"),
        ("host: {}\nmodels: 3", "is no profile"),
        ("a: b: c", "cannot be read"),
        ("host: {}\nmodels: {m: {name: x}}", "accepted are runtime"),
    ],
)
def test_what_is_no_profile_says_so(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=problem):
        host_profile.overrides(path, "m")


def test_what_is_written_of_an_artifact_of_others_can_be_built(tmp_path: Path) -> None:
    model = MODEL.replace("architecture: torchvision:resnet18", "artifact: {file: m.pt}")
    model = model.replace(
        "weights: {torchvision: IMAGENET1K_V1}", "labels: [cat, dog]\noutputs: logits"
    )
    model = model.replace("runtime_options:\n  method: trace  # scripts are slower\n", "")
    path, profile = tmp_path / "m.yaml", tmp_path / "p.yaml"
    path.write_text(model + "input: {resize: 8, crop: 8, mean: [0, 0, 0], std: [1, 1, 1]}\n")
    keys = writing.changes(spec.load(path), point(runtime="torchscript", batch_size=2), 2)
    writing.to_profile(profile, "m", keys, HOST)
    found = spec.load(path, host_profile.overrides(profile, "m"))
    assert (found.runtime, found.serving.batch_size) == ("torchscript", 2)
