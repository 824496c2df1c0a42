"""The catalogue: torchvision's own builders, weights files of one's own, and downloads."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.prepared import torchvision_model
from handlers.detector_resize import EagerResize
from handlers.errors import PluginError, WeightsError
from handlers.servable import Servable, create_network
from marsmith import catalogue, resolve, weights
from marsmith.build import build
from marsmith.spec import ModelSpec, load, parse

PROJECT = Path(__file__).parents[2]
CATALOGUE = [
    spec
    for spec in (load(path) for path in sorted((PROJECT / "models").glob("*.yaml")))
    if spec.weights.torchvision is not None
]
# What torchvision's builders do with weights beside loading them.
SPECIAL = {
    "densenet121": "image-classification",
    "googlenet": "image-classification",
    "mnasnet0_5": "image-classification",
    "vit_b_16": "image-classification",
    "lraspp_mobilenet_v3_large": "semantic-segmentation",
    "fasterrcnn_resnet50_fpn": "object-detection",
    "retinanet_resnet50_fpn": "object-detection",
    "ssdlite320_mobilenet_v3_large": "object-detection",
}
NAME = "squeezenet1_1"


def spec_of(name: str, task: str = "image-classification", **fields: Any) -> ModelSpec:
    given = {
        "name": name,
        "task": task,
        "architecture": f"torchvision:{name}",
        "weights": {"torchvision": "DEFAULT"},
    }
    return parse({**given, **fields}, name)


def fresh_state(name: str) -> dict[str, torch.Tensor]:
    """A state_dict with the keys that torchvision's file has."""
    network = create_network(f"torchvision:{name}", {}, Path(), "DEFAULT")
    state = network.state_dict()
    if name == "googlenet":
        # Its builder loads the auxiliary heads and then throws them away.
        full = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
        state = full.state_dict() | state
    return state


def facts(network: nn.Module) -> dict[str, Any]:
    """Kind and plain attributes of every module: what it computes with beside tensors."""
    plain = (bool, int, float, str, tuple, list, type(None))
    return {
        name: (
            # Ours differs from torchvision's where it is exported alone.
            GeneralizedRCNNTransform if type(module) is EagerResize else type(module),
            {
                k: repr(v)
                for k, v in vars(module).items()
                if isinstance(v, plain) and k != "training"
            },
        )
        for name, module in network.named_modules()
    }


@pytest.mark.filterwarnings("ignore:.*auxiliary heads")
@pytest.mark.parametrize("name", SPECIAL)
def test_a_network_is_what_torchvisions_builder_makes(name: str) -> None:
    spec = spec_of(name, SPECIAL[name])
    state = fresh_state(name)
    theirs = torchvision_model(spec, state)
    expected = facts(theirs)
    recipe = resolve.recipe(spec, resolve.image_input(spec))
    at_build = catalogue.network(recipe, state)
    at_serving = Servable.build(recipe, Path()).bare()
    servable = Servable.build(recipe, Path())
    servable.load_weights(at_build.state_dict())
    for network in (at_build, at_serving, servable.bare()):
        found = facts(network)
        if SPECIAL[name] == "object-detection":
            # A spec's decode settings are theirs.
            for each in (expected, found):
                for _, attributes in each.values():
                    for key in ("score_thresh", "detections_per_img"):
                        attributes.pop(key, None)
        assert found == expected
    for key, value in theirs.state_dict().items():
        assert torch.equal(servable.bare().state_dict()[key], value), key


def test_frozen_batch_norms_have_torchvisions_eps() -> None:
    for name, eps in (("fasterrcnn_resnet50_fpn", 0.0), ("fcos_resnet50_fpn", 1e-5)):
        network = create_network(f"torchvision:{name}", {}, Path(), "COCO_V1")
        norms = [each for each in network.modules() if isinstance(each, FrozenBatchNorm2d)]
        assert {norm.eps for norm in norms} == {eps}
        assert not any(isinstance(each, nn.BatchNorm2d) for each in network.modules())


def test_weights_of_another_network_are_refused() -> None:
    recipe = {"architecture": f"torchvision:{NAME}", "arguments": {}, "entry": "DEFAULT"}
    with pytest.raises(WeightsError, match=f"not of torchvision's {NAME} as IMAGENET1K_V1 has it"):
        catalogue.network(recipe, {"classifier.1.weight": torch.zeros(10, 512, 1, 1)})
    with pytest.raises(PluginError, match="num_classes"):
        catalogue.network({**recipe, "arguments": {"num_classes": 10}}, fresh_state(NAME))
    with pytest.raises(PluginError, match="has no weights COCO_V9"):
        catalogue.network({**recipe, "entry": "COCO_V9"}, {})


@pytest.mark.parametrize("spec", CATALOGUE, ids=lambda spec: spec.name)
def test_a_model_has_torchvisions_best_weights_and_says_so(spec: ModelSpec) -> None:
    entry = weights.torchvision_weights(spec)
    assert entry is weights.torchvision_weights(spec_of(spec.name, spec.task))
    assert spec.architecture == f"torchvision:{spec.name}"
    assert spec.licence == "BSD-3-Clause"
    assert spec.on("torchscript").options["method"] in ("trace", "script")
    assert "torchvision's weights" in spec.description
    assert resolve.labels(spec, PROJECT) == entry.meta["categories"]
    preset = entry.transforms()
    given = resolve.image_input(spec)
    for side, size in (("resize", "resize_size"), ("crop", "crop_size")):
        wanted = getattr(preset, size, None)
        assert getattr(given, side) == (wanted[0] if wanted else None)


def test_another_weights_file_keeps_torchvisions_labels_and_preset() -> None:
    path = PROJECT / "models/lraspp_mobilenet_v3_large.yaml"
    ours, theirs = load(path, {"weights": {"file": "w.pth"}}), load(path)
    assert (ours.weights.file, ours.weights.torchvision) == ("w.pth", theirs.weights.torchvision)
    assert resolve.labels(ours, PROJECT) == resolve.labels(theirs, PROJECT)
    assert resolve.image_input(ours) == resolve.image_input(theirs)


def test_a_runtime_gets_its_own_options() -> None:
    path = PROJECT / "models/ssdlite320_mobilenet_v3_large.yaml"
    assert load(path, {"runtime": "eager"}).options == {}
    assert load(path, {"runtime": "torchscript"}).options == {"method": "script"}
    given = {"runtime": "torchscript", "runtime_options": {"method": "trace"}}
    assert load(path, given).options == {"method": "trace"}


class Mirror(ThreadingHTTPServer):
    """torchvision's server, on loopback: serves a folder and can break off; knows no ranges."""

    breaks = 0

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Files, directory=str(folder)))
        self.asked: list[str] = []


class _Files(SimpleHTTPRequestHandler):
    server: Mirror

    def copyfile(self, source: Any, outputfile: Any) -> None:
        self.server.asked.append(self.path)
        data = source.read()
        if self.server.breaks:
            self.server.breaks -= 1
            data = data[: len(data) // 2]
        outputfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A mirror that has NAME's weights file, under a name with the digest that the file has."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    torch.manual_seed(0)
    network = torchvision.models.get_model(NAME, weights=None)
    last = network.classifier[1]
    nn.init.normal_(last.weight, std=0.3)
    torch.save(network.state_dict(), folder / "w.pth")
    digest = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()
    name = f"{NAME}-{digest[:8]}.pth"
    (folder / "w.pth").rename(folder / name)
    with Mirror(folder) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        entry = torchvision.models.get_model_weights(NAME).DEFAULT
        url = f"http://127.0.0.1:{server.server_address[1]}/{name}"
        monkeypatch.setattr(entry.value, "url", url)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project folder without weights."""
    folder = tmp_path / "project"
    folder.mkdir()
    os.symlink(PROJECT / "samples", folder / "samples")
    return folder


def test_a_model_is_built_from_a_download(
    mirror: Mirror, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.breaks = 1
    spec = spec_of(NAME, parity={"golden": 1e-4}, serving={"batch_size": 2})
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        weights.locate(spec, root)
    [part] = (root / "weights/download").iterdir()
    assert part.suffix == ".part"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = build(spec, root, root / "model-store", tell=lambda stage: None)
    assert built.path.is_file()
    [cached] = (root / "weights/download").iterdir()
    assert cached.name == weights.torchvision_weights(spec).url.rsplit("/", 1)[1]
    assert len(mirror.asked) == 2
    assert weights.locate(spec, root) == cached
    assert len(mirror.asked) == 2, "a file that is there is not asked for again"
    assert cached.stem in capsys.readouterr().err, "no progress was shown"


def test_a_file_with_another_digest_is_not_taken(mirror: Mirror, root: Path) -> None:
    [file] = (root.parent / "mirror").iterdir()
    file.write_bytes(b"another file")
    with pytest.raises(WeightsError, match=r"came with sha256 \w+, expected \w{8}\.\.\."):
        weights.locate(spec_of(NAME), root)
    assert not list((root / "weights/download").iterdir())


def test_without_network_one_line_says_which_file_to_put_where(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = next(spec for spec in CATALOGUE if spec.name == "mobilenet_v2")
    entry = weights.torchvision_weights(spec)
    name = entry.url.rsplit("/", 1)[1]
    monkeypatch.setattr(entry.value, "url", f"http://127.0.0.1:9/{name}")
    with pytest.raises(WeightsError) as refused:
        weights.locate(spec, root)
    message = str(refused.value)
    assert "\n" not in message
    assert f"http://127.0.0.1:9/{name} cannot be downloaded" in message
    assert f"put it at {root / 'weights/download' / name}" in message
