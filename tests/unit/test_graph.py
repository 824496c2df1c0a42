"""``marsmith graph``: groups of nodes, pictures, and netron on the loopback interface."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import requests
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from PIL import Image

from handlers.errors import ExportError, RuntimeUnavailable
from handlers.plugins import load_runtime
from handlers.runtimes import ExportRequest
from marsmith import cli, graph_picture, graphs


@pytest.fixture(autouse=True)
def _in_project(monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    monkeypatch.chdir(project)


@pytest.fixture(scope="module")
def lenet5_onnx(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """The exported graph of the small network."""
    path = tmp_path_factory.mktemp("graph") / "lenet5.onnx"
    before = Path.cwd()
    os.chdir(project)
    try:
        with graphs.onnx_of("lenet5_digits") as (made, _):
            path.write_bytes(made.read_bytes())
    finally:
        os.chdir(before)
    return path


def _chain(names: list[str], path: Path) -> Path:
    """A file with one Relu after another, of these names."""
    nodes = [
        helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], name=name)
        for i, name in enumerate(names)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3])
        for name in ("v0", f"v{len(names)}")
    ]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:])), path)
    return path


def test_a_box_is_a_module_of_the_network() -> None:
    with graphs.onnx_of("mobilenet_v2_shapes") as (path, kinds):
        groups, edges = graphs.groups(path)
    names = [group.module for group in groups]
    blocks = [f"network.network.features.{number}" for number in range(19)]
    assert [name for name in names if ".features" in name] == blocks
    assert names[0] == "network"
    assert names[-1] == "decode"
    assert kinds["network.network.features.1"] == "InvertedResidual"
    assert groups[3].summary() == "3 Conv, 2 Clip"
    # 96 channels from 16 and to 24, and a depthwise convolution between; batch norms are biases
    assert groups[3].parameters >= 16 * 96 + 9 * 96 + 96 * 24
    assert edges[-1, 0] == "128 x 128 x 3"
    assert edges[1, 2] == "32 x 64 x 64"
    assert all(start < end for start, end in edges)


def test_a_module_that_computes_before_and_after_its_own_is_two_boxes(tmp_path: Path) -> None:
    path = _chain(["a/R", "a.b/R", "a.c/R", "a/R#1"], tmp_path / "model.onnx")
    assert [group.module for group in graphs.groups(path, 2)[0]] == ["a"]
    names = ["a/R", *[f"a.b.{i}/R" for i in range(9)], *[f"a.c.{i}/R" for i in range(9)], "a/R#1"]
    groups, edges = graphs.groups(_chain(names, tmp_path / "large.onnx"), 4)
    assert [group.module for group in groups] == ["a", "a.b", "a.c", "a"]
    assert sorted(edges) == [(-1, 0), (0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(
    ("names", "modules"),
    [
        (["/layer1/conv/Relu", "/layer1/conv/Relu_1", "/layer2/Relu"], {"layer1.conv", "layer2"}),
        (["Relu_1", "", "x"], {"Relu_1"}),
    ],
)
def test_files_of_others(names: list[str], modules: set[str], tmp_path: Path) -> None:
    groups, _ = graphs.groups(_chain(names, tmp_path / "model.onnx"), 3)
    assert {group.module for group in groups} == modules


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_few_bits_have_the_boxes_and_weights_of_fp32(
    precision: str, lenet5_onnx: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 1), dtype=np.uint8)
    path = tmp_path / "model.onnx"
    given: Any = {"precision": precision, "calibration": [pixels], "exact": lenet5_onnx}
    request = ExportRequest(torch.nn.Identity(), pixels, {}, path, **given)
    load_runtime("onnx").export(request)  # type: ignore[attr-defined]
    onnx.checker.check_model(str(path), full_check=True)
    expected, found = Counter[str](), Counter[str]()
    for file, parameters in ((lenet5_onnx, expected), (path, found)):
        for group in graphs.groups(file)[0]:
            parameters[group.module] += group.parameters
    assert found == expected
    assert expected["network.network.fc1"] == 400 * 120 + 120


def test_nodes_that_a_converter_left_at_the_end_are_in_their_boxes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["cast"], ["out"], name="b/Relu"),
        helper.make_node("Cast", ["in"], ["cast"], name="a.in_cast_to_fp16_node", to=10),
    ]
    ends = [
        helper.make_tensor_value_info(name, kind, ["n", 3])
        for name, kind in (("in", TensorProto.FLOAT), ("out", TensorProto.FLOAT16))
    ]
    # Of before, as the converter leaves it.
    stale = [helper.make_tensor_value_info("cast", TensorProto.FLOAT, ["n", 3])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], value_info=stale)
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    groups, edges = graphs.groups(tmp_path / "model.onnx")
    assert [group.module for group in groups] == ["a.in", "b"]
    assert edges == {(-1, 0): "3", (0, 1): "3"}


def test_pictures_are_saved(lenet5_onnx: Path, tmp_path: Path) -> None:
    for name in ("graph.svg", "graph.png"):
        result = CliRunner().invoke(
            cli.group, ["graph", str(lenet5_onnx), "--save", str(tmp_path / name)]
        )
        assert result.exit_code == 0, result.output
        assert re.search(r"\d+ nodes in \d+ boxes", result.output)
    drawing = (tmp_path / "graph.svg").read_text()
    for words in ("network.network", "conv1", "Gemm", "weights", "input"):
        assert words in drawing
    with Image.open(tmp_path / "graph.png") as picture:
        assert picture.height > 300
        extremes: Any = picture.convert("L").getextrema()
        assert extremes[0] < 100 < 250 < extremes[1]


def test_a_frame_that_is_left_and_entered_again_is_not_drawn() -> None:
    groups = [graphs.Group(name) for name in ("a.x", "b", "a.y", "c.x", "c.y")]
    edges = {(0, 1): "", (1, 2): "", (2, 3): "", (3, 4): ""}
    assert graph_picture._frames(groups, edges) == {3: "c", 4: "c"}


@pytest.mark.parametrize(
    ("model", "save", "error"),
    [
        ("none.onnx", "x.svg", r"no ONNX file at none.onnx"),
        ("{onnx}", "x.jpg", r"x.jpg: a picture is saved as .svg or .png"),
    ],
)
def test_mistakes_are_named(model: str, save: str, error: str, lenet5_onnx: Path) -> None:
    arguments = ["graph", model.format(onnx=lenet5_onnx), "--save", save]
    with pytest.raises(ExportError, match=error):
        CliRunner().invoke(cli.group, arguments, catch_exceptions=False, standalone_mode=False)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--boxes", "30"), "--boxes is of a picture: give --save FILE as well"),
        (("--save", "x.svg", "--port", "0"), "--port: with --save nothing is served"),
        (("--save", "x.svg", "--no-browser"), "--no-browser: with --save nothing is served"),
        (("--save", "x.svg", "--browser", "--port", "1"), "--port, --browser: with --save"),
    ],
)
def test_options_of_the_other_form_are_refused(words: tuple[str, ...], error: str) -> None:
    result = CliRunner().invoke(cli.group, ["graph", "none.onnx", *words])
    assert (result.exit_code, error in result.output) == (2, True), result.output


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "find_spec", lambda name: None)
    with pytest.raises(RuntimeUnavailable, match=r"netron: install .* `make extra-graph`"):
        graphs.require("netron")


def test_netron_serves_on_the_loopback_interface_until_ctrl_c(
    lenet5_onnx: Path, project: Path
) -> None:
    command = [sys.executable, "-u", "-m", "marsmith", "graph", str(lenet5_onnx), "--no-browser"]
    with subprocess.Popen(
        command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as served:
        assert served.stdout is not None
        try:
            line = served.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found, line
            page = requests.get(found[0], timeout=30)
            assert page.status_code == 200
            assert "Netron" in page.text
            served.send_signal(signal.SIGINT)
            assert served.wait(timeout=30) == 0
        finally:
            served.kill()
