"""Counts of ``marsmith profile`` against values computed by hand."""

from __future__ import annotations

import json
import shutil
import zipfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from click.testing import CliRunner
from torch import Tensor, nn

from handlers.errors import SpecError, WeightsError
from marsmith import artifacts, cli, resolve, spec, subject
from marsmith.profiling import Layer, Profile, profile
from tests.user import THEIRS


def _profile(name: str, size: tuple[int, int] | None = None) -> Profile:
    with subject.find(name) as found:
        module, pixels = found.network(), found.pixels(size)
    return profile(module, torch.from_numpy(pixels.copy())[None])


def _layer(found: Profile, name: str) -> Layer:
    return next(each for each in found.layers if each.name == name)


@pytest.fixture(autouse=True)
def _no_download(monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were downloaded")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("marsmith.download.download", refuse)
    monkeypatch.chdir(project)


def test_mobilenet_v2_without_its_weights() -> None:
    found = _profile("mobilenet_v2")
    first = _layer(found, "network.network.features.0.0")
    assert (first.kind, first.weights, first.output) == ("Conv2d", 864, [32, 112, 112])
    assert first.multiply_adds == 864 * 112 * 112 == 10_838_016
    depthwise = _layer(found, "network.network.features.1.conv.0.0")
    assert (depthwise.kind, depthwise.weights) == ("Conv2d (depthwise)", 32 * 9)
    assert depthwise.multiply_adds == 32 * 9 * 112 * 112
    linear = _layer(found, "network.network.classifier.1")
    assert (linear.weights, linear.parameters) == (1_280_000, 1_281_000)
    assert linear.multiply_adds == 1_280_000
    # torchvision's own figures
    meta = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V2.meta
    assert found.parameters == meta["num_params"] == sum(each.parameters for each in found.layers)
    assert round(found.multiply_adds / 1e9, 3) == meta["_ops"]
    kinds = found.kinds()
    assert list(kinds) == ["Conv2d", "Conv2d (depthwise)", "Linear", "BatchNorm2d"]
    assert sum(each.multiply_adds for each in kinds.values()) == found.multiply_adds
    assert [each.calls for each in kinds.values()] == [35, 17, 1, 52]


def test_a_segmenter() -> None:
    found = _profile("lraspp_shapes", (192, 256))
    first = _layer(found, "network.network.network.backbone.0.0")
    assert (first.weights, first.multiply_adds) == (432, 432 * 96 * 128)
    last = _layer(found, "network.network.network.classifier.high_classifier")
    # 128 channels, 11 classes, at an eighth of the size, with a bias
    assert (last.weights, last.parameters) == (128 * 11, 129 * 11)
    assert last.multiply_adds == 128 * 11 * (192 // 8) * (256 // 8)


def test_a_detector_resizes_by_itself() -> None:
    found = _profile("ssdlite_shapes", (200, 300))
    first = _layer(found, "network.network.network.backbone.features.0.0.0")
    assert first.multiply_adds == 432 * 160 * 160
    # Six anchors, eleven classes, of 20 x 20 positions
    head = "network.network.network.head.classification_head.module_list.0.1"
    assert _layer(found, head).multiply_adds == 672 * 66 * 20 * 20


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return result


def test_attention_is_counted_though_inference_fuses_it() -> None:
    found = profile(_Attention().eval(), torch.zeros(1, 4, 8))
    projections = 4 * 8 * 24 + 4 * 8 * 8
    products = 2 * (2 * 4 * 4 * 4)
    assert _layer(found, "attention").multiply_adds == projections + products
    assert found.multiply_adds == projections + products
    assert torch.backends.mha.get_fastpath_enabled()


def test_each_call_of_a_layer_counts_and_so_does_each_picture() -> None:
    linear = nn.Linear(10, 10)
    found = profile(nn.Sequential(linear, linear), torch.zeros(3, 10))
    assert (_layer(found, "0").calls, found.multiply_adds) == (2, 2 * 3 * 100)
    assert (found.parameters, found.weight_bytes) == (110, 440)


def test_activation_memory_is_what_lives_at_one_time() -> None:
    layers = [nn.Linear(a, b, bias=False) for a, b in ((256, 512), (512, 128), (128, 1024))]
    found = profile(nn.Sequential(*layers, nn.ReLU(inplace=True)), torch.zeros(1, 256))
    bytes_of = 4
    # The input lives throughout, a layer's output until the next one is computed; what works in
    # place allocates nothing.
    assert found.total_activation_bytes == bytes_of * (256 + 512 + 128 + 1024)
    assert found.peak_activation_bytes == bytes_of * (256 + 128 + 1024)


def test_the_command_on_an_archive(lenet5: Path) -> None:
    result = CliRunner().invoke(cli.group, ["profile", str(lenet5), "--json", "--batch", "2"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["input"] == [2, 32, 32, 1]
    first = document["layers"][0]
    assert first["multiply_adds"] == 2 * first["weights"] * first["output"][1] * first["output"][2]
    (archive,) = document["archives"]
    with zipfile.ZipFile(lenet5) as files:
        assert archive["artifact_bytes"] == files.getinfo("model.pt").file_size
    assert archive["archive_bytes"] == lenet5.stat().st_size
    assert archive["load_s"] > 0
    assert archive["import_s"] > 0
    # Less than torch alone takes would be no worker's.
    assert archive["resident_bytes"] > 100e6


@pytest.mark.parametrize("name", ["weights", "theirs.onnx.data", "model.bin"])
def test_weights_beside_an_artifact_are_part_of_it(lenet5: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / lenet5.name
    shutil.copy(lenet5, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, bytes(12_345))
        own = archive.getinfo("model.pt").file_size
    assert artifacts.describe(path, load=False).artifact_bytes == own + 12_345


def test_the_table_shows_every_part(lenet5: Path) -> None:
    arguments = ["profile", "lenet5_digits", "--store", str(lenet5.parent), "--no-load"]
    result = CliRunner().invoke(cli.group, arguments)
    assert result.exit_code == 0, result.output
    for words in ("lenet5_digits-1.0.mar", "torchscript fp32", "parameters", "at one time"):
        assert words in result.output
    assert "refused" not in result.output


def test_archives_are_listed_by_version_and_a_damaged_one_is_named(
    lenet5: Path, tmp_path: Path
) -> None:
    for version in ("2.0", "10.0"):
        with (
            zipfile.ZipFile(lenet5) as built,
            zipfile.ZipFile(tmp_path / f"m-{version}.mar", "w") as archive,
        ):
            manifest = {"model": {"modelName": "lenet5_digits", "modelVersion": version}}
            archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
            archive.writestr("marsmith.json", built.read("marsmith.json"))
    (tmp_path / "broken.mar").write_bytes(b"damaged")
    arguments = ["profile", "lenet5_digits", "--store", str(tmp_path), "--no-load", "--json"]
    result = CliRunner().invoke(cli.group, arguments)
    assert result.exit_code == 0, repr(result.exception)
    listed = json.loads(result.stdout)["archives"]
    assert [each["version"] for each in listed] == ["2.0", "10.0"]
    assert result.stderr.startswith("left out: broken.mar is not a readable model archive")


def test_an_archive_that_does_not_load_says_so(unpacked: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mar"
    (unpacked / "model.pt").write_bytes(b"damaged")
    with zipfile.ZipFile(broken, "w") as archive:
        for file in unpacked.rglob("*"):
            archive.write(file, file.relative_to(unpacked))
    result = CliRunner().invoke(cli.group, ["profile", str(broken)])
    assert result.exit_code == 0, result.output
    assert "does not load in a clean process" in result.output
    assert "model.pt" in result.output


def test_an_archive_for_a_larger_host_can_be_looked_at(unpacked: Path) -> None:
    path = unpacked / "marsmith.json"
    bundle = json.loads(path.read_text())
    bundle["limits"] |= {"workers": 64, "threads": 64}
    # Earlier ones may say fewer cores than workers.
    for cores in ({}, {"cores": 2}):
        bundle["provenance"]["spec"]["serving"] = {"workers": 64, "threads": 64, **cores}
        path.write_text(json.dumps(bundle))
        serving = subject.of_archive(Path("m.mar"), unpacked).spec.serving
        assert (serving.workers, serving.threads) == (64, 64)


def test_an_archive_is_found_in_the_store_that_is_named(unpacked: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "elsewhere-1.0.mar", "w") as archive:
        for file in unpacked.rglob("*"):
            archive.write(file, file.relative_to(unpacked))
    words = ["profile", "elsewhere-1.0.mar", "--no-load"]
    assert CliRunner().invoke(cli.group, words).exit_code == 1
    found = CliRunner().invoke(cli.group, [*words, "--store", str(tmp_path)])
    assert found.exit_code == 0, found.output


def test_weights_are_used_where_they_are_given() -> None:
    with subject.find("mobilenet_v2_shapes") as found:
        with pytest.raises(WeightsError, match="weights"):
            found.trained(Path("weights/lenet5_digits.pth"))
        first = next(found.trained(Path("weights/mobilenet_v2_shapes.pth")).bare().parameters())
        given = torch.load("weights/mobilenet_v2_shapes.pth", weights_only=True)
        assert torch.equal(first, given["features.0.0.weight"].float())


@pytest.mark.parametrize(
    ("words", "idle"),
    [
        (("--size", "8,8", "--batch", "1"), "--size, --batch: theirs.mar was exported by others"),
        (("--weights", "w.pth"), "--weights: theirs.mar"),
        (("--top", "10"), "--top: theirs.mar"),
        ((), ""),
    ],
)
def test_what_counts_nothing_of_an_archive_of_others_is_refused(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], idle: str
) -> None:
    theirs = spec.parse(THEIRS, "theirs")
    made = subject.Subject(theirs, resolve.image_input(theirs), Path(), Path("theirs.mar"))
    monkeypatch.setattr(subject, "find", lambda *_: nullcontext(made))
    described = SimpleNamespace(to_json=lambda: "described")
    monkeypatch.setattr(artifacts, "describe", lambda *_: described)
    result = CliRunner().invoke(cli.group, ["profile", "theirs.mar", "--json", *words])
    if idle:
        assert isinstance(result.exception, SpecError)
        assert str(result.exception).startswith(idle)
    else:
        assert json.loads(result.stdout)["archives"] == ["described"]


@pytest.mark.parametrize("size", ["224", "0,224", "a,b", "1,2,3"])
def test_a_wrong_size_is_refused(size: str) -> None:
    result = CliRunner().invoke(cli.group, ["profile", "mobilenet_v2", "--size", size])
    assert result.exit_code == 2
    assert "HEIGHT,WIDTH" in result.output
