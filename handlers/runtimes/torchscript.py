"""TorchScript: a traced or scripted module that needs no source to load."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import torch

from handlers import precision, saving, torchscript_devices, torchscript_layers, vision
from handlers.errors import ExportError, IntegrityError, one_line
from handlers.foreign import flatten
from handlers.runtimes import Array, Arrays, ExportRequest, Runtime, as_arrays

METHODS = ("trace", "script")
_TRACE = "for other precisions take runtime_options method: trace"


class TorchScript(Runtime):
    """An artifact of ``torch.jit``; option ``method`` chooses how it is made: trace or script."""

    suffix = ".pt"
    precisions = ("fp32", *precision.DTYPES)
    # Classes that a process has seen before are numbered.
    reproducible = "by-process"
    options: ClassVar[Mapping[str, Any]] = {"method": "trace"}

    def __init__(self, path: Path, device: str, options: Mapping[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        try:
            if _uses_torchvision(path):
                # It registers the operators of detectors.
                vision.torchvision()
            with _undeprecated():
                module = torch.jit.load(str(path), map_location=device).eval()
                torchscript_devices.move(module.graph, device)
                self._module = torch.jit.freeze(module)
        except (RuntimeError, ValueError) as error:
            line = one_line(error)
            raise IntegrityError(f"{path.name} is not a TorchScript file: {line}") from error
        warnings.filterwarnings("ignore", message=r".*always returns a \(Losses, Detections\)")
        self._device, self._path = device, path

    def __call__(self, *arrays: Array) -> Arrays:
        with torch.inference_mode():
            images = (torch.from_numpy(array).to(self._device) for array in arrays)
            return as_arrays(self._module(*images))

    def named(self, images: Array) -> dict[str, Array]:
        batch = torch.from_numpy(images).to(self._device)
        with torch.inference_mode():
            # torchvision's scripted detectors take a list of pictures.
            takes = str(self._module.forward.schema.arguments[1].type)
            return flatten(self._module(list(batch) if takes == "List[Tensor]" else batch))

    def layers(self, images: Array) -> dict[str, Array]:
        # Anew, for a frozen module has no submodules.
        with _undeprecated(), torch.inference_mode():
            module = torch.jit.load(str(self._path), map_location=self._device).eval()
            found = torchscript_layers.layers(module, torch.from_numpy(images).to(self._device))
        # Numpy has no bfloat16.
        return {name: value.float().cpu().numpy() for name, value in found.items()}

    @classmethod
    def traces(cls, options: Mapping[str, Any]) -> bool:
        return bool(options["method"] == "trace")

    @staticmethod
    def export(request: ExportRequest) -> None:
        method = request.options["method"]
        if method not in METHODS:
            raise ExportError(f"method {method!r}: accepted are {', '.join(METHODS)}")
        if request.precision != "fp32":
            if method == "script":
                # Its compiler reads no autocast.
                raise ExportError(f"method script computes in fp32 alone: {_TRACE}")
            module = copy.deepcopy(request.module)
            precision.lower(module, request.precision)
            request = replace(request, module=module)
        with _undeprecated(), torch.inference_mode(False), torch.no_grad():
            if method == "trace":
                made = _trace(request)
            else:
                made = _script(request)
            saving.write(lambda file: torch.jit.save(made, file), request.path)

    @staticmethod
    def finish(request: ExportRequest) -> None:
        _strip_debug(request.path)


def _trace(request: ExportRequest) -> Any:
    with warnings.catch_warnings():
        # Tracing warns of every shape that Python reads. Parity at other sizes tells what matters.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        return torch.jit.trace(
            request.module, torch.from_numpy(request.example), check_trace=False, strict=False
        )


def _script(request: ExportRequest) -> Any:
    try:
        return torch.jit.script(request.module)
    # Its compiler meets what it cannot read with errors of many kinds.
    except Exception as error:
        line = one_line(error, 400)
        raise ExportError(f"torch.jit.script cannot read this model, use trace: {line}") from error


def _uses_torchvision(path: Path) -> bool:
    """Whether the code calls torchvision's operators, whose import costs memory and time."""
    reader = torch._C.PyTorchFileReader(str(path))
    code = (name for name in reader.get_all_records() if name.endswith(".py"))
    return any(b"ops.torchvision." in reader.get_record(name) for name in code)


def _strip_debug(path: Path) -> None:
    """Rewrite the file without its debug records, which hold the paths of the build machine."""
    reader = torch._C.PyTorchFileReader(str(path))
    records = {}
    for name in sorted(reader.get_all_records()):
        # The writer adds its own version and serialization id.
        if not name.endswith(".debug_pkl") and name not in ("version", ".data/serialization_id"):
            data = reader.get_record(name)
            records[name] = _sort_constants(data) if name.endswith(".py") else data
    saving.records(records, path)


def _sort_constants(code: bytes) -> bytes:
    """Constants of a class in the order of their names: torch.jit.script has them from a set."""
    groups = groupby(code.splitlines(keepends=True), key=lambda line: b" : Final[" in line)
    return b"".join(b"".join(sorted(g) if constant else g) for constant, g in groups)


@contextmanager
def _undeprecated() -> Iterator[None]:
    """torch.jit warns at every call that it is deprecated; it is a choice in the model's spec."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
        yield
