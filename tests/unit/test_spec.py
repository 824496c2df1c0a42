"""A model file: every mistake is one clear SpecError before anything runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from handlers import cores, plugins
from handlers.errors import BuildError, SpecError
from handlers.tasks.image_classification import ImageClassification
from marsmith import resolve, spec, spec_parts
from marsmith.spec import ModelSpec, load, parse
from marsmith.spec_parts import ServingSpec

MODEL: dict[str, Any] = {
    "name": "m",
    "task": "image-classification",
    "architecture": "torchvision:resnet18",
    "weights": {"torchvision": "IMAGENET1K_V1"},
}


def with_changes(**changes: Any) -> ModelSpec:
    return parse(MODEL | changes, "models/m.yaml")


def mistake(**changes: Any) -> str:
    with pytest.raises(SpecError) as refused:
        with_changes(**changes)
    message = str(refused.value)
    assert message.startswith("models/m.yaml: ")
    assert "\n" not in message
    return message


def test_the_least_a_model_file_says() -> None:
    model = with_changes()
    assert (model.version, model.runtime, model.precision) == ("1.0", "torchscript", "fp32")
    assert model.serving == ServingSpec()
    assert not model.default


def test_every_model_file_of_the_project_is_right(project: Path) -> None:
    paths = sorted((project / "models").glob("*.yaml"))
    assert [load(path).name for path in paths] == [path.stem for path in paths]
    by_default = spec.defaults(project)
    assert by_default
    assert all((project / str(model.weights.file)).is_file() for model in by_default)


@pytest.mark.parametrize("key", ["name", "task", "architecture", "weights"])
def test_what_is_missing_is_named(key: str) -> None:
    fields = {name: value for name, value in MODEL.items() if name != key}
    with pytest.raises(SpecError, match=f"{key}: Field required"):
        parse(fields, "m")


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"labls": []}, "labls"),
        ({"weights": {"file": "w", "sha": "x"}}, "weights.sha"),
        ({"input": {"size": 3}}, "input.size"),
        ({"serving": {"batchSize": 3}}, "serving.batchSize"),
        ({"parity": {"atol": 3}}, "parity.atol"),
    ],
)
def test_an_unknown_key_is_refused_at_its_place(changes: dict[str, Any], place: str) -> None:
    assert f"{place}: Extra inputs are not permitted" in mistake(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runtime_options": {"mode": "trace"}}, "runtime_options has the unknown key 'mode'"),
        (
            {"runtime_options": {"openvino": {"method": "trace"}}},
            "runtime_options.openvino has the unknown key 'method': accepted are streams",
        ),
        (
            {"parity": {"answers": 0.1}},
            "parity of task image-classification has the unknown key 'answers': accepted are "
            "golden, tolerance",
        ),
        (
            {"task": "object-detection", "parity": {"tolerance": 0.1}},
            "has the unknown key 'tolerance': accepted are answers, features, golden, overlap",
        ),
        ({"decode": {"top": 3}}, "decode has the unknown key 'top': accepted are none here"),
        ({"task": "image_classification"}, "task 'image_classification': accepted are"),
        ({"runtime": "tensorflow"}, "runtime 'tensorflow': accepted are"),
        ({"precision": "fp8"}, "precision: Input should be"),
    ],
)
def test_an_unknown_name_lists_the_accepted_ones(changes: dict[str, Any], words: str) -> None:
    assert words in mistake(**changes)


DETECTOR = {"task": "object-detection"}


class Normalised(ImageClassification):
    decode_settings = {"normalise": True, "temperature": 1.0, "kind": "l2", "sizes": [], "most": 3}
    decode_bounds = {"most": (1, 9)}


@pytest.mark.parametrize(
    ("decode", "words"),
    [
        ({"normalise": "maybe"}, "decode.normalise is 'maybe': write true or false"),
        ({"normalise": 1}, "decode.normalise is 1: write true or false"),
        ({"temperature": "hot"}, "decode.temperature is 'hot': write a number"),
        ({"temperature": True}, "decode.temperature is True: write a number"),
        ({"temperature": math.nan}, "decode.temperature is nan: write a number"),
        ({"temperature": None}, "decode.temperature is None: write a number"),
        ({"kind": 2}, "decode.kind is 2: write text"),
        ({"sizes": 3}, "decode.sizes is 3: write a list"),
        ({"most": True}, "decode.most is True: write a whole number from 1 to 9"),
        ({"most": 0}, "decode.most is 0: write a whole number from 1 to 9"),
        ({"most": 10}, "decode.most is 10: write a whole number from 1 to 9"),
        (
            {"kind": 2, "sort": 1, "sizes": "all"},
            "decode has the unknown key 'sort': accepted are kind, most, normalise, sizes, "
            "temperature; decode.kind is 2: write text; decode.sizes is 'all': write a list",
        ),
    ],
)
def test_a_decode_setting_of_another_type_is_named(
    decode: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "load_task", lambda name: Normalised)
    assert mistake(decode=decode) == f"models/m.yaml: model: {words}"
    with_changes(decode={"temperature": 2, "normalise": False, "kind": "l1", "most": 9})


@pytest.mark.parametrize(
    ("decode", "words"),
    [
        ({"score_floor": "high"}, "score_floor is 'high': write a number from 0 to 1 or null"),
        ({"score_floor": 2}, "decode.score_floor is 2: write a number from 0 to 1 or null"),
        ({"max_detections": 1.5}, "is 1.5: write a whole number from 1 or null"),
        ({"max_detections": -1}, "max_detections is -1: write a whole number from 1 or null"),
        ({"max_detections": 0}, "max_detections is 0: write a whole number from 1 or null"),
        ({"nms_iou": True}, "decode.nms_iou is True: write a number from 0 to 1 or null"),
        ({"nms_iou": 1.5}, "decode.nms_iou is 1.5: write a number from 0 to 1 or null"),
        ({"nms_iou": -0.5}, "decode.nms_iou is -0.5: write a number from 0 to 1 or null"),
    ],
)
def test_a_detectors_settings_are_numbers_or_the_networks_own(
    decode: dict[str, Any], words: str
) -> None:
    assert words in mistake(**DETECTOR, decode=decode)
    own = {"score_floor": 1, "nms_iou": 0.5, "max_detections": None}
    for each in (own, {"score_floor": 0, "nms_iou": 1, "max_detections": 1}):
        assert with_changes(**DETECTOR, decode=each).decode == each


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": 5}, "name: Input should be a valid string"),
        ({"name": "my model"}, "name: "),
        ({"name": "../m"}, "name: "),
        ({"name": ""}, "name: "),
        ({"name": "m\n"}, "name: "),
        ({"labels": [0, 1]}, "labels"),
        ({"labels": {"0": "cat"}}, "labels"),
        ({"architecture": "resnet18"}, 'write "torchvision:resnet18" or "folder/my_model.py:Net"'),
        ({"architecture": "timm:resnet18"}, 'write "torchvision:resnet18"'),
        ({"arguments": [1]}, "arguments: Input should be a valid dictionary"),
        ({"weights": "w.pth"}, "weights: "),
        ({"weights": {}}, "name a 'file', or the entry of 'torchvision'"),
        ({"weights": {"file": "w", "sha256": "abc"}}, "weights.sha256"),
        ({"weights": {"file": "w", "sha256": "A" * 64}}, "weights.sha256"),
        ({"input": {"resize": 0}}, "input.resize"),
        ({"input": {"resize": "224"}}, "input.resize"),
        ({"input": {"resize": [1, 2, 3]}}, "input.resize"),
        ({"input": {"crop": 9000}}, "input.crop"),
        ({"input": {"crop": True}}, "input.crop"),
        ({"input": {"color": "hsv"}}, "input.color"),
        ({"task": "semantic-segmentation", "input": {"crop": 64}}, "a crop leaves some out: say"),
        ({"arguments": {"num_classes": "two"}}, "num_classes (--num-classes): 'two' is not how"),
        ({"arguments": {"num_classes": True}}, "num_classes (--num-classes): True is not how"),
        ({"arguments": {"num_classes": 2.0}}, "num_classes (--num-classes): 2.0 is not how"),
        ({"arguments": {"num_classes": 0}}, "num_classes (--num-classes): 0 is not how"),
        ({"input": {"resize": 9, "letterbox": 0}}, "letterbox needs resize: [height, width]"),
        ({"input": {"letterbox_position": "top-left"}}, "letterbox_position needs letterbox"),
        (
            {"input": {"resize": [9, 9], "letterbox": 0, "letterbox_position": "left"}},
            "input.letterbox_position: Input should be 'center' or 'top-left'",
        ),
        (
            {"input": {"interpolation": "lanczos", "antialias": False}},
            "antialias: false is there for interpolation nearest, bilinear, bicubic alone",
        ),
        ({"input": {"interpolation": "area"}}, "interpolation 'area': accepted are nearest"),
        ({"input": {"mean": [0.5]}}, "mean has 1 values, rgb has 3"),
        ({"input": {"color": "gray", "mean": [0.5]}}, "std has 3 values, gray has 1"),
        ({"input": {"std": [0.1, 0, 0.1]}}, "std must be above 0"),
        ({"input": {"mean": ["a", 0, 0]}}, "input.mean.0"),
        ({"runtime_options": {"openvino": "one"}}, "runtime_options.openvino is 'one': write a"),
        ({"parity": {"tolerance": 0}}, "parity.tolerance"),
        ({"parity": {"tolerance": float("nan")}}, "parity.tolerance"),
        ({"parity": {"golden": 0.5}}, "parity.golden"),
        ({"serving": {"workers": 0}}, "serving.workers"),
        ({"serving": {"workers": "2"}}, "serving.workers"),
        ({"serving": {"workers": True}}, "serving.workers"),
        ({"serving": {"batch_size": 1.5}}, "serving.batch_size"),
        ({"serving": {"max_batch_delay": 0}}, "serving.max_batch_delay"),
        ({"serving": {"device": "tpu"}}, "serving.device"),
        ({"serving": {"queue_size": 4}}, "queue_size is smaller than batch_size"),
        ({"default": "yes"}, "default: Input should be a valid boolean"),
    ],
)
def test_a_wrong_value_is_refused_at_its_place(changes: dict[str, Any], words: str) -> None:
    assert words in mistake(**changes)


def test_options_of_other_runtimes_stand_under_their_names(tmp_path: Path) -> None:
    options = {"method": "trace", "openvino": {"streams": "per-thread"}, "torch-compile": {}}
    model = with_changes(runtime_options=options)
    assert model.options == {"method": "trace"}
    assert model.on("torchscript") is model
    assert model.on("openvino").options == {"streams": "per-thread"}
    assert model.on("openvino").on("torchscript").options == {}
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump({**MODEL, "runtime_options": options}))
    assert load(path, {"runtime": "openvino"}).options == {"streams": "per-thread"}
    said = {"runtime": "openvino", "runtime_options": {"streams": "one"}}
    assert load(path, said).options == {"streams": "one"}
    assert load(path, {"runtime_options": {"method": "script"}}).on("openvino").options == {
        "streams": "per-thread"
    }


def test_all_mistakes_are_named_at_once() -> None:
    message = mistake(name=5, labls=[], serving={"workers": 0})
    assert all(place in message for place in ("name: ", "labls: ", "serving.workers: "))


@pytest.mark.parametrize("version", ["1", "1.0", "2.0", "10.20.30", "1.2.3.4", "0.0.1"])
def test_a_version_is_digits_and_dots(version: str) -> None:
    assert with_changes(version=version).version == version


@pytest.mark.parametrize(
    "version", ["", "v1", "1.", ".1", "1..2", "1.0-rc1", "1.2.3.4.5", "1/2", "1.0\n", "٣", 1.0, 2]
)
def test_any_other_version_is_refused(version: object) -> None:
    assert "version: " in mistake(version=version)


def test_what_is_said_of_fp32_goes_before_what_is_said_of_all() -> None:
    parity = with_changes(parity={"tolerance": 0.02, "fp32": {"tolerance": 0.003}}).parity
    assert parity.closeness("fp32").outputs == parity.exact().outputs == 0.003
    assert parity.closeness("bf16").outputs == 0.02


def test_weights_of_torchvision_go_with_their_architecture() -> None:
    fields = {**MODEL, "weights": {"torchvision": "DEFAULT"}}
    file = {"weights": {"file": "mine.pth"}}
    same = spec.merged(fields, file, "m").weights
    assert (same.file, same.torchvision) == ("mine.pth", "DEFAULT")
    other = spec.merged(fields, {"architecture": "mine.py:Net", **file}, "m").weights
    assert (other.file, other.torchvision) == ("mine.pth", None)


def test_a_queue_may_be_as_long_as_a_batch() -> None:
    serving = with_changes(serving={"queue_size": 8, "batch_size": 8}).serving
    assert (serving.queue_size, serving.batch_size) == (8, 8)


def test_more_threads_than_cores_are_refused() -> None:
    message = mistake(serving={"workers": 3, "threads": 2, "cores": 5})
    assert "3 workers x 2 threads fight for 5 cores" in message
    assert with_changes(serving={"workers": 3, "threads": 2, "cores": 6}).serving.threads == 2
    # Each worker has one thread where there are no more to share.
    message = mistake(serving={"workers": 3, "threads": 0, "cores": 2})
    assert "3 workers x 1 thread fight for 2 cores: lower workers, or say the serving" in message
    assert with_changes(serving={"workers": 3, "threads": 0, "cores": 3}).serving.workers == 3


def test_the_cores_are_this_machines_when_none_are_named() -> None:
    here = cores.usable()
    assert with_changes(serving={"threads": here}).serving.threads == here
    assert f"fight for {here} cores" in mistake(serving={"threads": here + 1})
    assert f"fight for {here} cores" in mistake(serving={"workers": here + 1})


def test_the_files_of_the_project_are_for_a_host_of_one_core_too(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec_parts, "usable", lambda: 1)
    files = {path.stem: load(path) for path in (project / "models").glob("*.yaml")}
    assert files["mobilenet_v2_shapes"].serving.workers == 2


def test_serving_becomes_torchserves_configuration() -> None:
    made = ServingSpec(
        workers=2, cores=2, batch_size=4, max_batch_delay=7, device="gpu"
    ).model_config_yaml()
    assert yaml.safe_load(made) == {
        "minWorkers": 2,
        "maxWorkers": 2,
        "batchSize": 4,
        "maxBatchDelay": 7,
        "responseTimeout": 60,
        "startupTimeout": 300,
        "jobQueueSize": 200,
        "deviceType": "gpu",
    }
    assert "deviceType" not in ServingSpec().model_config_yaml()


def test_overrides_replace_keys_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(MODEL))
    model = load(path, {"version": "3.0", "weights": {"file": "w.pth"}})
    assert (model.name, model.version, model.weights.file) == ("m", "3.0", "w.pth")
    assert load(path).version == "1.0"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a YAML mapping"),
        (b"- 1", "is not a YAML mapping"),
        (b"just text", "is not a YAML mapping"),
        (b"a: [", "cannot be read as YAML"),
        (b"a: \xff", "cannot be read as YAML"),
        (b"a: 2001-13-45", "cannot be read as YAML"),
        (b'a: !!int "x"', "cannot be read as YAML"),
        (b'a: !!bool "x"', "cannot be read as YAML"),
        (b'a: !!timestamp "x"', "cannot be read as YAML"),
        (b"a: !!python/object:os.system {}", "cannot be read as YAML"),
        (b"? [1]\n: 2", "cannot be read as YAML"),
        (b"[" * 3000, "cannot be read as YAML"),
        (b"1: 2", "Keys should be strings"),
    ],
)
def test_a_file_that_is_no_model_is_refused_by_its_path(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "m.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=words) as refused:
        load(path)
    assert str(path) in str(refused.value)
    assert isinstance(refused.value, BuildError)


def test_a_missing_file_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: cannot be read"):
        load(tmp_path / "none.yaml")


KEYS = st.sampled_from([*ModelSpec.model_fields, *ServingSpec.model_fields, "file", "resize"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers(), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.dictionaries(KEYS | st.text(max_size=4) | st.integers(), VALUES, max_size=5))
def test_no_mapping_raises_anything_else(fields: dict[Any, Any]) -> None:
    for document in (fields, MODEL | fields):
        message = ""
        try:
            assert isinstance(parse(document, "m"), ModelSpec)
        except SpecError as refused:
            message = str(refused)
        assert "\n" not in message


INPUT = {
    "color": st.sampled_from(["rgb", "bgr", "gray"]),
    "resize": st.integers(0, 70) | st.lists(st.integers(1, 70), min_size=1, max_size=3),
    "crop": st.integers(1, 70) | st.lists(st.integers(1, 70), min_size=2, max_size=2),
    "interpolation": st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
    "antialias": st.booleans(),
    "letterbox": st.integers(-1, 256),
    "letterbox_position": st.sampled_from(["center", "top-left", "left"]),
    "backend": st.sampled_from(["pil", "tensor"]),
    "mean": st.just([0.5]),
    "std": st.just([0.5]),
}


@given(
    st.fixed_dictionaries({}, optional=INPUT),
    st.tuples(st.integers(1, 80), st.integers(1, 80)),
    st.sampled_from(["image-classification", "object-detection", "semantic-segmentation"]),
)
def test_an_input_is_refused_or_takes_every_picture(
    fields: dict[str, Any], size: tuple[int, int], task: str
) -> None:
    try:
        made = resolve.image_input(parse(MODEL | {"task": task, "input": fields}, "m"))
    except SpecError:
        return
    pixels = made.prepare(Image.new("RGB", size, "white"))
    place = made.place(size)
    assert pixels.shape == (*place.canvas[::-1], made.channels)
    assert pixels.dtype == np.uint8
    everywhere = np.array([[-1e9, -1e9, 1e9, 1e9]])
    boxes = made.boxes_in_picture(everywhere, size)
    if not place.size == place.canvas == size:
        assert boxes.tolist() == [[0, 0, *size]]
    assert made.plane_in_picture(pixels[:, :, 0], size).size > 0


@given(st.text(alphabet="ab01:-[]{}!&*#'\"\n ,?|>%@.", max_size=30))
def test_no_text_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"any\.yaml"):
        load(path)


@pytest.mark.parametrize(("runtime", "device"), [("openvino", "gpu"), ("tensorrt", "cpu")])
def test_a_device_that_the_runtime_does_not_run_on(runtime: str, device: str) -> None:
    changes = {"runtime": runtime, "serving": {"device": device}}
    with pytest.raises(SpecError, match=f"serving.device {device}: runtime {runtime} runs on"):
        parse(MODEL | changes, "m")
