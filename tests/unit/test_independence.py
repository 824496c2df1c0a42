"""What a worker imports: nothing of the pipeline, and no runtime that it does not use."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from handlers import plugins, torch_on_demand
from handlers.servable import Servable

TORCHLESS = [
    name for name in plugins.names("runtimes") if not plugins.load_runtime(name).needs_torch
]
HEAVY = (
    *("openvino", "onnxruntime", "onnx", "onnxscript", "nncf", "torchao", "tensorrt"),
    *("torchvision", "torch._inductor.compile_fx", "pydantic", "click", "rich", "sklearn"),
)


def _run(code: str, project: Path, *first: Path) -> str:
    """What ``code`` prints in the project's folder, with the folders ``first`` ahead of all."""
    paths = f"import sys; sys.path[:0] = {[str(folder) for folder in first]}; "
    done = subprocess.run(
        [sys.executable, "-c", paths + code],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=120,
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


def test_an_eager_network_of_one_s_own_comes_without_torchvision(
    project: Path, tmp_path: Path
) -> None:
    recipe = {
        "architecture": "cifar_net.py:Net",
        "arguments": {"num_classes": 10},
        "task": "image-classification",
        "decode": {},
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(project / "training/networks/cifar_net.py", source)
    state = Servable.build(recipe, source).bare().state_dict()
    torch.save({"recipe": recipe, "state": state}, tmp_path / "model.pth")
    code = (
        "from pathlib import Path; import numpy as np; from handlers import plugins; "
        f"load, path = plugins.load_runtime('eager'), Path({str(tmp_path / 'model.pth')!r}); "
        "model = load(path, 'cpu', {'threads': 1, 'batch': 1, 'precision': 'fp32'}); "
        "print(model(np.zeros((1, 32, 32, 3), np.uint8))[0].shape); "
        "print([name for name in ('torchvision', 'torch._dynamo') if name in sys.modules])"
    )
    assert _run(code, project).splitlines() == ["(1, 10)", "[]"]


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


def test_a_worker_reads_requests_as_torchserve_does(project: Path) -> None:
    # The service has imported its protocol before it imports a handler.
    code = (
        "from ts.protocol import otf_message_handler as o; theirs = o._retrieve_buffer; "
        "import handlers.torchserve, socket, threading; a, b = socket.socketpair(); "
        "body = bytes(range(256)) * 4000; "
        "sender = threading.Thread(target=lambda: (a.sendall(body * 2), a.close())); "
        "sender.start(); first, second = theirs(b, len(body)), o._retrieve_buffer(b, len(body)); "
        "print(o._retrieve_buffer is theirs, first == second == body, type(second).__name__, "
        "len(o._retrieve_buffer(b, 0)), flush=True); o._retrieve_buffer(b, 4); print('went on')"
    )
    # It ends, with status 0, when the front end has gone.
    assert _run(code, project).split() == ["False", "True", "bytearray", "0"]


def test_a_worker_prints_no_line_for_each_batch(project: Path) -> None:
    code = (
        "import logging, socket, sys; from ts.protocol import otf_message_handler as o; "
        "logging.basicConfig(stream=sys.stdout, format='%(message)s', level=logging.INFO); "
        "a, b = socket.socketpair(); a.sendall(2 * (b'I' + (-1).to_bytes(4, 'big', signed=True))); "
        "o.retrieve_msg(b); import handlers.torchserve; print(o.retrieve_msg(b)); "
        "logging.info('another')"
    )
    before, batch, another = _run(code, project).splitlines()
    assert before.startswith("Backend received inference at: ")
    assert (batch, another) == ("(bytearray(b'I'), [])", "another")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Stands for the root of an archive whose worker needs no torch."""
    shutil.copy(str(torch_on_demand.__file__), tmp_path / "torch.py")
    return tmp_path


@pytest.mark.parametrize("runtime", TORCHLESS)
def test_a_worker_without_need_of_torch_has_none(project: Path, root: Path, runtime: str) -> None:
    code = (
        "import ts.model_service_worker; import handlers.entry; from handlers import plugins; "
        "[plugins.load_task(name) for name in plugins.names('tasks')]; "
        f"plugins.load_runtime({runtime!r}).requires; "
        "from handlers.torch_on_demand import loaded; "
        "print(loaded(), sys.modules['torch'].__file__)"
    )
    assert _run(code, project, root) == f"False {root / 'torch.py'}"


def test_there_are_runtimes_without_torch() -> None:
    assert {"openvino", "onnx"} <= set(TORCHLESS)


@pytest.mark.parametrize(
    "use",
    [
        "import torch; found = torch.nn.functional.relu",
        "from torch import nn; found = nn.functional.relu",
        "import torch.nn.functional; found = sys.modules['torch.nn.functional'].relu",
        "import torch.nn.functional as f; found = f.relu",
        # The package does not import it by itself.
        "import torch; from torch.utils import tensorboard; found = torch.nn.functional.relu",
        "from ts.protocol import otf_message_handler as o; found = o.torch.nn.functional.relu",
        "from handlers.torchserve import BaseHandler; import ts.torch_handler.base_handler as b; "
        "found = b.torch.nn.functional.relu",
    ],
)
def test_what_is_asked_of_the_stand_in_is_torchs_own(project: Path, root: Path, use: str) -> None:
    use = use.replace("tensorboard", "mkldnn")
    code = (
        f"{use}; import torch; print(found is torch.nn.functional.relu, torch.Tensor.__module__, "
        "sys.modules['torch.nn'].__spec__.origin == torch.nn.__file__, torch.__version__[0], "
        "int(torch.ones(2).sum()), [n for n in sys.modules if n.startswith('torch') and "
        f"str(getattr(sys.modules[n], '__file__', '')).startswith({str(root)!r})])"
    )
    assert _run(code, project, root) == "True torch True 2 2 []"


def test_a_torch_that_is_not_there_is_missing_as_ever(project: Path, root: Path) -> None:
    code = (
        "import torch; here = [*sys.path]; sys.path[:] = [sys.path[0]]\n"
        "try: torch.nn\n"
        "except ModuleNotFoundError as error: print(error, error.name)\n"
        "sys.path[:] = here; print(torch.nn.__name__, torch.nn is sys.modules['torch'].nn)"
    )
    assert _run(code, project, root).splitlines() == [
        "No module named 'torch' torch",
        "torch.nn True",
    ]


def test_a_torch_that_fails_can_be_tried_again(project: Path, root: Path, tmp_path: Path) -> None:
    broken = root / "broken/torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('libtorch is cut')")
    code = (
        f"import torch; sys.path.insert(0, {str(broken.parent)!r})\n"
        "try: torch.nn\n"
        "except OSError as error: print(error)\n"
        "del sys.path[0]; from torch import nn; print(nn.__name__)"
    )
    assert _run(code, project, root).splitlines() == ["libtorch is cut", "torch.nn"]
