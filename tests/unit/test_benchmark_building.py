"""The export that a build is compared with, in each kind of precision."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("runtime", "precision"), [("torchscript", "fp32"), ("openvino", "bf16"), ("openvino", "int8")]
)
def test_an_export_alone_leaves_an_artifact_in_the_precision_of_the_model_file(
    tmp_path: Path, runtime: str, precision: str
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    if precision == "int8":
        pytest.importorskip("nncf")
    said = yaml.safe_load((PROJECT / "models/lenet5_digits.yaml").read_text("utf-8"))
    said |= {"runtime": runtime, "precision": precision}
    if precision == "int8":
        said["calibration"] = {"folder": "samples/digits", "count": 4}
        said["accuracy"] = {"folder": "samples/digits"}
    file, folder = tmp_path / "digits.yaml", tmp_path / "alone"
    file.write_text(yaml.safe_dump(said), "utf-8")
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.building", str(file), "--alone", str(folder)]
    done = subprocess.run(
        command, cwd=PROJECT, timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) > 0
    suffix = {"torchscript": ".pt", "openvino": ".xml"}[runtime]
    assert (folder / f"model{suffix}").stat().st_size > 0
