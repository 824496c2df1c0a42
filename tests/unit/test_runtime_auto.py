"""``build --runtime auto``: the fastest is built, with its options, and the rest is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from handlers.bundle import Bundle
from handlers.errors import ExportError, SpecError
from marsmith import trials
from marsmith.archive import unpack
from marsmith.commands import build
from marsmith.trials import Trial

OPTIONS = {"streams": "per-thread", "torchscript": {"method": "script"}}
# One that fails is not taken, however fast it was until then.
PROBLEM = "/home/me/it.py needs the Python package nothing"
BROKEN = Trial("eager", "fp32", problem=PROBLEM, throughput=900.0)


class Trials:
    """Stands in the place of ``trials.run``, whose figures no test can foresee."""

    def __init__(self, **throughput: float) -> None:
        self._found = [Trial(name, "fp32", throughput=each) for name, each in throughput.items()]
        self.pairs: list[tuple[str, str]] = []
        self.batch = 0

    def __call__(
        self, spec: Any, root: Path, store: Path, pairs: Any, tell: Any, batch: int
    ) -> Iterator[Trial]:
        self.pairs, self.batch = list(pairs), batch
        yield from [*self._found, BROKEN]


@pytest.fixture
def model(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file for OpenVINO with options, and others for where TorchScript is chosen."""
    fields = yaml.safe_load((project / "models/lenet5_digits.yaml").read_text())
    path = tmp_path / "lenet5_digits.yaml"
    fields |= {"runtime": "openvino", "runtime_options": OPTIONS, "serving": {"batch_size": 4}}
    path.write_text(yaml.safe_dump(fields))
    monkeypatch.chdir(project)
    return path


def run(model: Path, monkeypatch: pytest.MonkeyPatch, tried: Trials, *words: str) -> Result:
    monkeypatch.setattr(trials, "run", tried)
    given = [str(model), "--runtime", "auto", "--store", str(model.parent / "store"), *words]
    return CliRunner().invoke(build.command, given)


def packed(model: Path) -> Bundle:
    [archive] = (model.parent / "store").glob("*.mar")
    unpack(archive, model.parent / "unpacked")
    return Bundle.read(model.parent / "unpacked")


@pytest.mark.parametrize("words", [(), ("--precision", "fp32")])
@pytest.mark.parametrize(
    ("throughput", "fastest", "options"),
    [
        ({"openvino": 20.0, "torchscript": 90.0}, "torchscript", {"method": "script"}),
        ({"openvino": 90.0, "torchscript": 20.0}, "openvino", {"streams": "per-thread"}),
    ],
)
def test_the_fastest_is_built_with_its_own_options(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    throughput: dict[str, float],
    fastest: str,
    options: dict[str, str],
    words: tuple[str, ...],
) -> None:
    tried = Trials(**throughput)
    done = run(model, monkeypatch, tried, *words)
    assert done.exit_code == 0, done.output
    assert f"--runtime auto: {fastest}, 90 pictures/s at batch 4" in done.stderr
    assert tried.batch == 4
    assert {precision for _, precision in tried.pairs} == {"fp32"}
    assert {"eager", "torchscript", "openvino"} <= {runtime for runtime, _ in tried.pairs}
    bundle = packed(model)
    assert (bundle.runtime, bundle.runtime_options) == (fastest, options)
    assert bundle.provenance["spec"]["chosen"] == {
        **{name: f"{each:.0f} pictures/s" for name, each in throughput.items()},
        # Without the folders of the build machine.
        "eager": "it.py needs the Python package nothing",
    }


def test_a_method_is_of_the_runtime_that_has_it_wherever_that_is_tried(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = Trials(torchscript=90.0)
    done = run(model, monkeypatch, tried, "--method", "trace")
    assert done.exit_code == 0, done.output + repr(done.exception)
    bundle = packed(model)
    assert (bundle.runtime, bundle.runtime_options) == ("torchscript", {"method": "trace"})


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ("--runtime", "openvino"),
            "--method is of runtime torchscript, and this builds for openvino: add --runtime torch",
        ),
        (
            (*("--runtime", "auto", "--precision", "int8"), "--calibrate", "a", "--evaluate", "b"),
            "--method is of runtime torchscript, which does not compute in int8: leave it out",
        ),
    ],
)
def test_a_method_that_no_runtime_takes_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], problem: str
) -> None:
    monkeypatch.setattr(trials, "run", lambda *_, **__: pytest.fail("a runtime was tried"))
    done = CliRunner().invoke(build.command, [str(model), *words, "--method", "trace"])
    assert isinstance(done.exception, SpecError)
    assert problem in str(done.exception)


def test_a_method_is_taken_in_a_precision_that_other_runtimes_have(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be the first of them, and have no such option."""
    chosen: list[Any] = []
    monkeypatch.setattr(build, "_build", lambda spec, *_: chosen.append(spec) or {})
    tried = Trials(torchscript=90.0)
    done = run(model, monkeypatch, tried, "--precision", "bf16", "--method", "trace")
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert (chosen[0].precision, chosen[0].options) == ("bf16", {"method": "trace"})


LOOPS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return torch.stack([self.linear(each.mean((1, 2))) for each in x])
"""


def test_a_candidate_that_fails_parity_is_dropped(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing fixes how often a loop over the batch goes round."""
    (tmp_path / "net.py").write_text(LOOPS)
    weight = torch.tensor([[9.0, -9.0, 0.0], [-9.0, 9.0, 0.0]])
    torch.save({"linear.weight": weight, "linear.bias": torch.zeros(2)}, tmp_path / "net.pth")
    fields: dict[str, Any] = {"name": "net", "task": "image-classification"}
    fields |= {"architecture": f"{tmp_path}/net.py:Net", "labels": ["red", "green"]}
    fields |= {"weights": {"file": str(tmp_path / "net.pth")}, "input": {"resize": [16, 16]}}
    fields |= {"runtime_options": {"method": "trace"}, "serving": {"batch_size": 2}}
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(fields))
    monkeypatch.chdir(project)
    real = trials.run

    def run(*given: Any, batch: int) -> Iterator[Trial]:
        # One candidate really; all of them take minutes.
        *before, _, tell = given
        yield from real(*before, [("torchscript", "fp32")], tell, batch=batch)
        yield Trial("eager", "fp32", throughput=10.0)

    monkeypatch.setattr(trials, "run", run)
    given = [str(tmp_path / "net.yaml"), "--runtime", "auto", "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(build.command, given)
    assert done.exit_code == 0, done.output + repr(done.exception)
    bundle = packed(tmp_path / "net.yaml")
    assert bundle.runtime == "eager"
    problem = bundle.provenance["spec"]["chosen"]["torchscript"]
    assert "the artifact fails on a batch of 1" in problem


def test_where_all_fail_nothing_is_built_and_every_reason_is_told(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(model, monkeypatch, Trials())
    assert isinstance(done.exception, ExportError)
    assert f"eager: {PROBLEM}" in str(done.exception)
    assert not (model.parent / "store").exists()


def test_the_artifact_of_others_has_no_choice(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(project)
    (tmp_path / "theirs.onnx").write_bytes(b"")
    given = {"--name": "theirs", "--artifact": str(tmp_path / "theirs.onnx"), "--runtime": "auto"}
    given |= {"--task": "image-classification", "--outputs": "logits", "--resize": "8,8"}
    (tmp_path / "labels.txt").write_text("a\nb\n")
    given |= {"--labels": str(tmp_path / "labels.txt"), "--mean": "0,0,0", "--std": "1,1,1"}
    words = [word for pair in given.items() for word in pair]
    done = CliRunner().invoke(build.command, words)
    assert isinstance(done.exception, SpecError)
    assert "runs in the runtime of its format" in str(done.exception)
