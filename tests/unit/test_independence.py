"""What a worker imports: nothing of the pipeline, and no runtime that it does not use."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

HEAVY = (
    *("openvino", "onnxruntime", "onnx", "onnxscript", "nncf", "torchao", "tensorrt"),
    *("torchvision", "torch._inductor.compile_fx", "pydantic", "click", "rich", "sklearn"),
)


def _run(code: str, project: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_handlers_never_import_the_pipeline(project: Path) -> None:
    files = sorted((project / "handlers").rglob("*.py"))
    assert len(files) > 20
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "marsmith"], file


def test_a_worker_imports_only_what_its_runtime_needs(project: Path) -> None:
    code = (
        "import sys; from handlers import plugins; import handlers.entry; "
        "[plugins.load_task(name) for name in plugins.names('tasks')]; "
        "[plugins.load_runtime(name) for name in plugins.names('runtimes')]; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert _run(code, project) == "[]"


def test_torchvision_comes_without_the_compiler(project: Path) -> None:
    code = (
        "import sys; from handlers import vision; models = vision.torchvision().models; "
        "from torchvision.ops import roi_align as module; import torch; "
        "print('torch._dynamo' in sys.modules); models.resnet18(weights=None); "
        "asked = sys.modules['torchvision.ops.roi_align'].is_compile_supported('cpu'); "
        "import torch._dynamo; print(torch._dynamo.__file__ is not None); "
        "print(asked is torch._dynamo.utils.is_compile_supported('cpu'))"
    )
    assert _run(code, project).split() == ["False", "True", "True"]


def test_base_handler_neither_probes_nor_changes_precision(project: Path) -> None:
    # A GPU of the Ampere generation, which base_handler would switch to TF32, is made up here.
    code = (
        "import sys, torch; torch.cuda.is_available = lambda: True; "
        "torch.cuda.get_device_capability = lambda *a: (8, 0); "
        "from handlers.torchserve import BaseHandler; "
        "print(torch.get_float32_matmul_precision(), 'onnxruntime' in sys.modules, "
        "'openvino' in sys.modules); import onnxruntime; print(BaseHandler.__name__)"
    )
    assert _run(code, project).split() == ["highest", "False", "False", "BaseHandler"]
