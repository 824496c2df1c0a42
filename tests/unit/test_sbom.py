"""The bill of materials in an archive, and what says where the archive comes from."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.model.bom import Bom

from handlers.bundle import Bundle
from handlers.integrity import sha256
from marsmith import origin, preparing, quantise, sbom, spec


@pytest.fixture
def bill(unpacked: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((unpacked / sbom.FILE).read_text())
    return content


def test_it_names_the_model_its_weights_and_every_package(
    bill: dict[str, Any], unpacked: Path
) -> None:
    assert Bom.from_json(bill).validate()  # type: ignore[attr-defined]
    model = bill["metadata"]["component"]
    assert (model["name"], model["version"]) == ("lenet5_digits", "1.0")
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": sha256(unpacked / "model.pt")}]
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    parts = {part["name"]: part for part in bill["components"]}
    weights = Bundle.read(unpacked).provenance["spec"]["weights"]
    assert parts[weights["file"]]["hashes"][0]["content"] == weights["sha256"]
    # Those that a worker imports, and what torch needs in turn.
    for name in ("torch", "torchserve", "pyyaml", "numpy", "pillow", "simplejpeg", "sympy"):
        assert parts[name]["version"] == version(name)
        assert parts[name]["purl"] == f"pkg:pypi/{name}@{version(name).replace('+', '%2B')}"


def test_only_a_given_epoch_puts_a_time_into_it(
    bill: dict[str, Any], unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "timestamp" not in bill["metadata"]
    bundle, before = Bundle.read(unpacked), (unpacked / sbom.FILE).read_bytes()
    sbom.write(bundle, unpacked)
    assert (unpacked / sbom.FILE).read_bytes() == before
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    sbom.write(bundle, unpacked)
    dated = json.loads((unpacked / sbom.FILE).read_text())
    assert dated["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    assert dated["serialNumber"] != bill["serialNumber"]


def test_a_runtimes_own_packages_are_in_it() -> None:
    assert "onnxruntime" in sbom.needed("onnx")
    assert "onnxruntime" not in sbom.needed("eager")


def test_what_answers_of_the_task_need_is_in_it(unpacked: Path) -> None:
    def parts(task: str) -> set[str]:
        sbom.write(replace(Bundle.read(unpacked), task=task), unpacked)
        return {
            part["name"] for part in json.loads((unpacked / sbom.FILE).read_text())["components"]
        }

    assert parts("semantic-segmentation") - parts("image-classification") == {"pycocotools"}


def test_modules_are_of_the_packages_that_python_names() -> None:
    providers = packages_distributions()
    modules = ["torch", "yaml", "PIL", "google", "openvino", "simplejpeg", "pytest", "six", "none"]
    for module in modules:
        assert sbom.providing([module]) == sorted({*providers.get(module, ())}), module
    assert sbom.providing(["yaml", "PIL"]) == ["PyYAML", "pillow"]
    assert sbom.providing([]) == []


def test_extras_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {"torch": ["a[x]"], "a": ["b; extra == 'x'", "c; extra == 'y'"]}
    monkeypatch.setattr(sbom.metadata, "requires", lambda name: needs.get(name))
    assert {"a", "b"} <= set(sbom.needed("eager"))
    assert "c" not in sbom.needed("eager")


def test_provenance_names_the_pictures_that_it_was_proven_on(unpacked: Path, project: Path) -> None:
    from marsmith import samples

    files = samples.spread(samples.found(project / "samples/digits"))
    expected = {"pictures": 8, "data": quantise.digest(files)}
    assert Bundle.read(unpacked).provenance["data"] == {"samples": expected}


def test_the_commit_is_the_packages_own_and_dirt_is_told(tmp_path: Path, project: Path) -> None:
    home = tmp_path / "home"
    for name in ("handlers", "marsmith"):
        (home / name).mkdir(parents=True)
        (home / name / "__init__.py").write_text("WAIT_POLICY = ''\n")
    (home / "marsmith/origin.py").write_text(Path(origin.__file__).read_text())

    def git(*command: str) -> str:
        author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ("git", *author, *command)
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def code() -> Any:
        run = "import json; from marsmith import origin; print(json.dumps(origin.code()))"
        done = subprocess.run(
            [sys.executable, "-B", "-c", run],
            cwd=home,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(home)},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert code() == {}
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    first = git("rev-parse", "HEAD")
    (home / "README.md").write_text("words")
    git("add", ".")
    git("commit", "-qm", "two")
    assert code() == {"commit": first, "dirty": False}
    (home / "handlers/new.py").write_text("")
    assert code() == {"commit": first, "dirty": True}


@pytest.mark.parametrize(
    ("runtime", "precision", "packages"),
    [
        ("openvino", "int8", {"openvino", "nncf", "onnx", "onnxscript"}),
        ("onnx", "fp32", {"onnxruntime", "onnx", "onnxscript"}),
        ("aotinductor", "int8", {"torchao"}),
        ("aotinductor", "fp32", set()),
    ],
)
def test_provenance_tells_the_packages_that_made_the_artifact(
    project: Path, runtime: str, precision: str, packages: set[str]
) -> None:
    folders = {key: {"folder": "samples/digits"} for key in ("calibration", "accuracy")}
    changes = {"runtime": runtime, "precision": precision, **folders}
    model = spec.load(project / "models/lenet5_digits.yaml", changes)
    bundle = preparing.bundle_of(model, project, [], weights=project / "weights/lenet5_digits.pth")
    found = bundle.provenance["versions"]
    base = {"python", "torch", "torchvision", "numpy", "pillow", "torchserve"}
    assert found.keys() == base | packages | {"torch-model-archiver"}
    assert all(found[name] == version(name) for name in packages)


def test_provenance_tells_the_kind_of_the_host(
    unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Bundle.read(unpacked).provenance["host"] == origin.host()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    monkeypatch.setattr(origin, "_CPU_INFO", tmp_path / "cpuinfo")
    assert origin.processor() == "Some CPU @ 2 GHz"
    # In the place of torch with a GPU, of which this host may have none.
    monkeypatch.setattr(origin.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(origin.torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    assert origin.host()["gpus"] == ["GPU 0"]
