"""From a spec to input, labels, recipe and source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handlers.errors import SpecError
from handlers.inputs import ImageInput
from handlers.tasks.image_classification import ImageClassification
from marsmith import build, own, preparing
from marsmith.resolve import image_input, labels, recipe, source_file
from marsmith.spec import ModelSpec, parse


def spec(**changes: Any) -> ModelSpec:
    fields = {
        "name": "m",
        "task": "image-classification",
        "architecture": "nets/net.py:Net",
        "weights": {"file": "w.pth"},
    }
    return parse(fields | changes, "m.yaml")


TORCHVISION = {
    "architecture": "torchvision:mobilenet_v2",
    "weights": {"torchvision": "IMAGENET1K_V1"},
}


def test_the_input_is_the_specs_own() -> None:
    given = {"color": "gray", "resize": [32, 30], "crop": 28, "mean": [0.3], "std": [0.4]}
    expected = ImageInput("gray", [32, 30], 28, "bilinear", (0.3,), (0.4,))
    assert image_input(spec(input=given)) == expected


def test_the_input_of_torchvisions_weights_is_their_preset() -> None:
    expected = ImageInput("rgb", 256, 224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert image_input(spec(**TORCHVISION)) == expected
    second = TORCHVISION | {"weights": {"torchvision": "IMAGENET1K_V2"}}
    assert image_input(spec(**second)).resize == 232


def test_a_spec_may_override_torchvisions_preset() -> None:
    assert image_input(spec(**TORCHVISION, input={"resize": 99})).resize == 99


def test_weights_from_a_file_need_an_input() -> None:
    with pytest.raises(SpecError, match="^input: say what becomes of a picture"):
        image_input(spec())


def test_labels_are_the_specs_own_or_torchvisions() -> None:
    assert labels(spec(labels=["a", "b"]), Path("nowhere")) == ["a", "b"]
    names = labels(spec(**TORCHVISION), Path("nowhere"))
    assert (len(names), names[0], names[-1]) == (1000, "tench", "toilet tissue")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.txt", "cat\ndog\n\n  big bird \n"),
        ("l.json", json.dumps(["cat", "dog", "big bird"])),
        ("l.json", json.dumps({"1": "dog", "0": "cat", "2": "big bird"})),
        ("l.json", json.dumps({"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["n3", "big bird"]})),
    ],
)
def test_labels_are_read_from_a_file(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_text(text, encoding)
    assert labels(spec(labels=name), tmp_path) == ["cat", "dog", "big bird"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", b"\xff\xfe"),
        ("l.json", b"{"),
        ("l.json", b"5"),
        ("l.json", b"[1, 2]"),
        ("l.json", b"[[], {}]"),
        ("l.json", b'{"0": "cat", "2": "dog"}'),
        ("l.json", b'"cat"'),
        ("l.json", b"[" * 50_000),
    ],
)
def test_a_file_without_labels_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError, match=rf"{name}"):
        labels(spec(labels=name), tmp_path)


@pytest.mark.parametrize("name", ["labels.csv", "labels.yaml", "l.names"])
def test_a_file_of_labels_in_another_format_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("0,cat\n1,dog\n")
    with pytest.raises(SpecError, match=rf"^labels: {name}: .* \.txt .* \.json"):
        labels(spec(labels=name), tmp_path)
    (tmp_path / "LABELS.TXT").write_text("cat\ndog\n")
    (tmp_path / "labels").write_text("cat\ndog\n")
    for plain in ("LABELS.TXT", "labels"):
        assert labels(spec(labels=plain), tmp_path) == ["cat", "dog"]


def test_labels_must_come_from_somewhere(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="^labels: list them"):
        labels(spec(), tmp_path)
    with pytest.raises(SpecError, match=r"none\.txt cannot be read"):
        labels(spec(labels="none.txt"), tmp_path)


def test_a_task_that_tells_no_classes_has_no_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (spec(), spec(labels=[]), spec(**TORCHVISION)):
        with monkeypatch.context() as patch:
            patch.setattr(ImageClassification, "most_labels", 0)
            assert labels(given, Path("nowhere")) == []
    options = {"name": "m", "task": "image-classification", "artifact": "m.onnx"}
    project = Path(__file__).parents[2]
    with monkeypatch.context() as patch:
        patch.setattr(ImageClassification, "most_labels", 0)
        patch.setattr(own, "_artifact", lambda *_: {})
        assert own.fields(options, project, project)[0]["labels"] == []


def test_the_recipe_names_the_source_as_it_lies_in_the_archive() -> None:
    made = recipe(spec(arguments={"n": 3}), ImageInput())
    assert made["architecture"] == "net.py:Net"
    assert made["arguments"] == {"n": 3}
    assert recipe(spec(**TORCHVISION), ImageInput())["architecture"] == "torchvision:mobilenet_v2"
    assert json.loads(json.dumps(made)) == made


def test_the_source_is_a_file_of_the_project(tmp_path: Path) -> None:
    assert source_file(spec(**TORCHVISION), tmp_path) is None
    with pytest.raises(SpecError, match=rf"^architecture: no file {tmp_path}/nets/net\.py \(paths"):
        source_file(spec(), tmp_path)
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/net.py").touch()
    assert source_file(spec(), tmp_path) == tmp_path / "nets/net.py"


DETECTOR = {
    "task": "object-detection",
    "architecture": "torchvision:ssdlite320_mobilenet_v3_large",
    "labels": ["background", "cat"],
}
FIXED = {"resize": [320, 320], "letterbox": 0}


@pytest.mark.parametrize("weights", [{"file": "w.pth"}, {"torchvision": "COCO_V1"}])
def test_a_network_that_normalises_by_itself_is_not_normalised_for(weights: Any) -> None:
    for given in (None, FIXED, {"resize": [99, 99]}):
        found = image_input(spec(**DETECTOR, weights=weights, input=given))
        assert (found.mean, found.std) == ((0.0,) * 3, (1.0,) * 3)
    usual = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    found = image_input(spec(**DETECTOR, weights=weights, input=FIXED | usual))
    assert found.mean == (0.485, 0.456, 0.406)


def test_what_was_said_of_mean_and_std_is_recorded_also_where_it_is_usual(project: Path) -> None:
    usual = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    said = {"weights": {"file": "w.pth"}, "samples": str(project / "samples/scenes")}
    for given, there in ((FIXED | usual, True), (FIXED, False)):
        model = spec(**DETECTOR, **said, input=given)
        record = preparing._provenance(model, project, [])["spec"]["input"]
        assert (record.get("mean") == usual["mean"]) is there
        again = parse({**model.model_dump(exclude_unset=True), "input": record}, "again")
        assert image_input(again) == image_input(model)


def test_a_detector_of_ones_own_is_normalised_for_only_where_that_is_said() -> None:
    own_one = {**DETECTOR, "architecture": "./det.py:Net"}
    for given in (None, FIXED):
        found = image_input(spec(**own_one, input=given))
        assert (found.mean, found.std) == ((0.0,) * 3, (1.0,) * 3)
    usual = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    found = image_input(spec(**own_one, input=FIXED | usual))
    assert (found.mean, found.std) == (tuple(usual["mean"]), tuple(usual["std"]))
    # A task without an input of its own normalises as ever.
    assert image_input(spec(input={"resize": 32})).mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("mean", [[123.675, 116.28, 103.53], [0.4, 0.4, 1.01]])
def test_a_mean_of_pixels_up_to_255_is_refused_at_build(mean: list[float]) -> None:
    given = spec(input={"resize": 32, "mean": mean, "std": [58.0, 57.0, 57.0]})
    with pytest.raises(SpecError, match="for pixels from 0 to 1 here: divide both by 255"):
        build._check_new(given)


def test_a_name_that_torchserve_takes_for_its_tokens_is_refused_at_build() -> None:
    with pytest.raises(SpecError, match="begins with 'token'"):
        build._check_new(spec(name="tokenizer"))
    build._check_new(spec(name="a_token"))
