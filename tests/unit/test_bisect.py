"""``marsmith bisect`` names the layer at which an export is wrong, and hides no NaN or 0/0."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import numpy_helper
from torch import Tensor, nn

from handlers import program_layers, torchscript_layers
from handlers.errors import RuntimeUnavailable, SpecError, WeightsError
from handlers.runtimes.eager import layers as eager_layers
from marsmith import archive, build, cli, spec
from marsmith.bisecting import Report, compare

NAME = "cifar_net_shapes"


@pytest.fixture(autouse=True)
def _in_project(monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    monkeypatch.chdir(project)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Callable[[str], Path]:
    """The archive of a small network for a runtime."""
    made: dict[str, Path] = {}

    def get(runtime: str) -> Path:
        if runtime not in made:
            model = spec.load(project / f"models/{NAME}.yaml", {"runtime": runtime})
            store = tmp_path_factory.mktemp(runtime)
            made[runtime] = build.build(model, project, store, tell=lambda stage: None).path
        return made[runtime]

    return get


def _bisect(*arguments: object) -> Result:
    return CliRunner().invoke(cli.group, ["bisect", *map(str, arguments)])


def _changed(path: Path, target: Path, layer: str, change: Callable[[Any], Any]) -> Path:
    """A copy of an ONNX archive in which the weights of one layer were changed."""
    folder = target.with_suffix("")
    archive.unpack(path, folder)
    model = onnx.load(folder / "model.onnx")
    node = next(node for node in model.graph.node if node.name == layer)
    weights = next(each for each in model.graph.initializer if each.name == node.input[1])
    weights.CopyFrom(
        numpy_helper.from_array(change(numpy_helper.to_array(weights).copy()), weights.name)
    )
    onnx.save(model, folder / "model.onnx")
    with zipfile.ZipFile(target, "w") as packed:
        for file in folder.rglob("*"):
            packed.write(file, file.relative_to(folder))
    return target


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("eager", "onnx"),
        ("torchscript", "onnx"),
        ("torchscript", "openvino"),
        ("eager", "torch-compile"),
    ],
)
def test_two_right_ones_agree_everywhere(
    first: str, second: str, built: Callable[[str], Path]
) -> None:
    one = first if first == "eager" else built(first)
    result = _bisect(one, built(second), "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["agree"], document["first"], document["suspects"]) == (True, None, [])
    names = [row["layer"] for row in document["layers"]]
    prefix = "network.network."
    assert [name for name in names if name.startswith(prefix)][:2] == [
        f"{prefix}conv1",
        f"{prefix}pool",
    ]
    assert {f"{prefix}{name}" for name in ("conv2", "fc1", "fc2", "fc3", "pool#1")} <= set(names)
    assert names[-1] == "output 0"
    assert max(row["relative"] for row in document["layers"]) < 1e-4
    assert min(row["scale"] for row in document["layers"]) > 0


@pytest.mark.parametrize("layer", ["network.network.conv2", "network.network.fc2"])
def test_a_layer_with_other_weights_is_found_by_its_name(
    layer: str, built: Callable[[str], Path], tmp_path: Path
) -> None:
    wrong = _changed(built("onnx"), tmp_path / "wrong.mar", layer, lambda w: w * 1.05)
    result = _bisect("eager", wrong, "--json")
    assert result.exit_code == 1, result.output
    document = json.loads(result.stdout)
    assert document["first"] == layer
    assert layer in document["suspects"]
    shown = _bisect("eager", wrong)
    assert f"part at {layer}" in shown.output
    assert "agree everywhere" in _bisect("eager", wrong, "--tolerance", 1).output


def test_a_picture_can_be_given(built: Callable[[str], Path]) -> None:
    results = [
        json.loads(
            _bisect("eager", built("onnx"), "--json", "--picture", f"samples/shapes/{name}").stdout
        )["layers"][0]["scale"]
        for name in ("star.jpg", "ring.jpg")
    ]
    assert results[0] != results[1]


def test_mistakes_are_named(
    built: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lenet5: Path
) -> None:
    for arguments in (("eager", "eager"), ("eager", NAME)):
        result = _bisect(*arguments)
        assert isinstance(result.exception, SpecError)
        assert "two archives (.mar), or one and eager" in str(result.exception)
    result = _bisect(lenet5, built("onnx"))
    assert "different inputs" in str(result.exception)
    result = _bisect("eager", built("onnx"), "--picture", tmp_path / "none.jpg")
    assert "no picture at" in str(result.exception)
    monkeypatch.chdir(tmp_path)
    result = _bisect("eager", built("onnx"))
    assert isinstance(result.exception, WeightsError)
    assert "give their file with --weights" in str(result.exception)


def test_weights_that_neither_side_takes_are_refused() -> None:
    result = _bisect("a.mar", "b.mar", "--weights", "w.pth")
    assert isinstance(result.exception, SpecError)
    assert str(result.exception) == "--weights goes with eager alone"


def _report(first: list[float], second: list[float]) -> Report:
    pair = [np.array([values], dtype=np.float32) for values in (first, second)]
    return compare({"network": pair[0]}, {"network": pair[1]}, 1e-3)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("first", "second", "relative"),
    [
        ([0, 0], [0, 0], 0.0),
        ([0, 0], [0, 1e-30], INF),
        ([1, 0], [1, 1e-4], 1e-4),
        ([1, 2], [1, NAN], INF),
        ([NAN, 2], [1, 2], INF),
        ([NAN, 2], [NAN, 2], 0.0),
        ([INF, 2], [-INF, 2], INF),
        ([INF, 2], [INF, 2], 0.0),
        ([NAN, 2], [NAN, 3], 0.5),
        ([NAN, NAN], [0, 0], INF),
        # Nothing in them tells how far they are apart.
        ([NAN, NAN], [NAN, NAN], NAN),
        ([INF, NAN], [INF, NAN], NAN),
    ],
)
def test_neither_0_by_0_nor_nan_is_hidden(
    first: list[float], second: list[float], relative: float
) -> None:
    report = _report(first, second)
    (row,) = report.rows
    assert row.relative == pytest.approx(relative, nan_ok=True)
    assert row.parts == (relative > 1e-3)
    counts = tuple(int((~np.isfinite(values)).sum()) for values in (first, second))
    assert row.not_finite == counts
    assert bool(row.note) == any(counts)
    # What is no number agrees with nothing, the same in the other neither.
    assert report.agree == (relative <= 1e-3 and not any(counts))


@pytest.mark.parametrize("everything", [[], ["--all"]])
def test_two_runs_of_nan_alone_do_not_agree(
    everything: list[str], built: Callable[[str], Path], tmp_path: Path
) -> None:
    layer = "network.network.conv2"
    broken = _changed(built("onnx"), tmp_path / "broken.mar", layer, lambda w: w * np.float32(NAN))
    result = _bisect(broken, broken, "--json")
    assert result.exit_code == 1, result.output
    document = json.loads(result.stdout)
    assert (document["agree"], document["first"], document["suspects"]) == (False, None, [])
    rows = {row["layer"]: row for row in document["layers"]}
    assert rows["network.network.conv1"]["not_finite"] == [0, 0]
    values = math.prod(rows[layer]["shape"])
    assert document["not_finite"][layer] == rows[layer]["not_finite"] == [values, values]
    assert next(iter(document["not_finite"])) == layer
    assert "output 0" in document["not_finite"]
    assert rows[layer]["relative"] == "nan"
    shown = _bisect(broken, broken, *everything)
    assert shown.exit_code == 1
    assert "agree everywhere" not in shown.output
    first = f"first in {layer} ({values} values against {values})"
    assert first in shown.output
    assert f"not finite in {len(document['not_finite'])} of {len(rows)} layers" in shown.output


def test_another_shape_parts_and_a_report_is_json() -> None:
    layers = {"a": np.ones((1, 2)), "folded": np.ones((1, 3)), "b": np.ones((1, 4))}
    other = {"a": np.ones((1, 2)), "b": np.ones((1, 5))}
    report = compare(layers, other, 1e-3)
    assert report.first is not None
    assert (report.first.layer, report.suspects) == ("b", ["folded", "b"])
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["layers"][1]["absolute"] == "inf"
    assert document["layers"][1]["note"] == "[1, 4] against [1, 5]"


def test_nothing_in_common_is_an_error() -> None:
    only = np.ones((1, 2))
    with pytest.raises(SpecError, match="no layer of the one has the name"):
        compare({"a": only, "output 0": only}, {"b": only, "output 0": only}, 1e-3)


class _Loops(nn.Module):
    """Calls a module for each picture, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        found: list[Tensor] = []
        for image in images:
            found.append(self.linear(image))
        return torch.stack(found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_loop_shows_nothing_and_says_what_to_do() -> None:
    with pytest.raises(RuntimeUnavailable, match="--method trace"):
        torchscript_layers.layers(torch.jit.script(_Loops()), torch.zeros(2, 2))


class _Within(nn.Module):
    """Calls modules that lie in containers which themselves are not called."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(2))
        self.nested = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        for block in self.blocks:
            images = block(images)
        found: Tensor = self.nested[0](images)
        return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_names_modules_with_the_containers_they_lie_in(tmp_path: Path) -> None:
    module, images = _Within().eval(), torch.ones(1, 2)
    torch.jit.save(torch.jit.trace(module, images), tmp_path / "model.pt")
    found = torchscript_layers.layers(torch.jit.load(tmp_path / "model.pt"), images)
    expected = eager_layers(module, images)
    assert found.keys() == expected.keys()
    assert "blocks.1.0" in found
    for name, value in found.items():
        torch.testing.assert_close(value, torch.from_numpy(expected[name]))


class _Shared(_Within):
    """As well calls a module twice, changes in place, and has one that gives two values."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.inplace, self.two = nn.Linear(2, 2), nn.ReLU(inplace=True), _Two()

    def forward(self, images: Tensor) -> Tensor:
        images = self.inplace(self.again(self.again(super().forward(images))))
        one, other = self.two(images)
        return one + other


class _Two(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images * 2, images - 1


def test_a_program_gives_its_modules_results_under_their_names() -> None:
    torch.manual_seed(0)
    module, images = _Shared().eval(), torch.ones(1, 2)
    exported: Any = torch.export.export(module, (images,)).module()
    names = program_layers.tap(exported)
    found = dict(zip(names, exported(images), strict=True))
    expected = eager_layers(module, images)
    # Before it is changed in place, and no single value of a module that gives two.
    assert {"again", "again#1", "inplace", "blocks.1.0"} <= found.keys()
    assert "two" not in found
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, torch.from_numpy(expected[name]))
    assert (expected["again#1"] < 0).any()
