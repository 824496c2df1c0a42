"""Engines of TensorRT: built once for a GPU, a version and a model, and kept in a private folder.

Written against the Python API of TensorRT 10 (docs.nvidia.com/deeplearning/tensorrt).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from handlers import inductor, integrity, onnx_data
from handlers.errors import IntegrityError, LoadError, one_line

METADATA = "marsmith"
# Raised when ``_build`` is changed: hosts must not go on with engines made otherwise.
_RECIPE = 1
logger = logging.getLogger(__name__)

# The least, best and largest shape of the input.
Profile = list[list[int]]


def load(
    path: Path, device: torch.device, options: Mapping[str, Any]
) -> tuple[Any, Any, Profile, dict[str, Any]]:
    """The engine of the ONNX file at ``path`` for ``device``: the kept one, or a new one.

    Before it the TensorRT ``Runtime`` that must live as long, behind it what shapes it takes and
    what the file tells of itself. Of several workers that start at once one builds, and the others
    wait for it. Raises LoadError.
    """
    import tensorrt as trt

    try:
        content = path.read_bytes()
        known = told(path.name, content)
        weights = [integrity.sha256(part) for part in onnx_data.parts(path).values()]
    except OSError as error:
        name = Path(error.filename).name
        raise IntegrityError(f"{name} cannot be read: {error.strerror}") from error
    shapes = _profile(known, options["batch"], options["largest"])
    gpu = torch.cuda.get_device_name(device)
    parts = [gpu, torch.cuda.get_device_capability(device)]
    key = json.dumps([*parts, trt.__version__, _RECIPE, _sha256(content), shapes, *weights])
    folder = inductor.private(inductor.cache_root(options["cache"]) / "tensorrt")
    name = "-".join([*re.findall("[0-9A-Za-z]+", gpu), trt.__version__, _sha256(key.encode())])
    kept = folder / f"{name}.engine"
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = _kept(runtime, kept)
        if engine is None:
            _write(kept, _build(path, content, known["input"], shapes))
            engine = runtime.deserialize_cuda_engine(kept.read_bytes())
    if engine is None:
        raise LoadError(f"the engine {kept}, built here just now, does not load: see its log")
    return runtime, engine, shapes, known


def _kept(runtime: Any, path: Path) -> Any:
    """The engine at ``path``; None where there is none, or one that does not load any more."""
    if not path.exists():
        return None
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        logger.warning(
            "marsmith: warning: the kept engine %s does not load (damaged, or made by another "
            "driver): it is built again",
            path,
        )
    return engine


def inputs(engine: Any, names: Sequence[str]) -> list[str]:
    """Those of an engine's tensors that it takes."""
    import tensorrt as trt

    return [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]


def told(name: str, content: bytes) -> dict[str, Any]:
    """What an export wrote into the ONNX file, and the ``input``'s name and ``axes`` (0: varies).

    Raises IntegrityError.
    """
    import onnx

    try:
        model = onnx.load_model_from_string(content)
        (given,) = model.graph.input
        axes = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
        known = {each.key: each.value for each in model.metadata_props}.get(METADATA, "{}")
        return {**json.loads(known), "input": given.name, "axes": axes}
    # Protobuf's errors and those of what a damaged file holds are of many kinds.
    except Exception as error:
        line = one_line(error)
        raise IntegrityError(f"{name} is no ONNX model with one input: {line}") from error


def _profile(known: Mapping[str, Any], batch: int, largest: int) -> Profile:
    axes, ranges = known["axes"], known.get("ranges", {})
    example = known.get("example", axes)
    least, best, most = list(axes), list(axes), list(axes)
    for axis, length in enumerate(axes):
        if length:
            continue
        low, high = ranges.get(str(axis), [1, largest if axis else batch])
        high = min(high, largest) if axis else high
        # Full batches are what is worth being fast; pictures are mostly as the example is.
        usual = min(example[axis], high) if axis and example[axis] else high
        least[axis], best[axis], most[axis] = low, usual, high
    return [least, best, most]


def _build(path: Path, content: bytes, given: str, profile: Profile) -> Any:
    """A serialized engine; raises LoadError with what TensorRT's log says."""
    import tensorrt as trt

    log = _log(trt)
    builder = trt.Builder(log)
    # Strongly typed: what is float32 in the file is computed in float32.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    # The path is where it looks for weights in other files.
    if not parser.parse(content, str(path)):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise IntegrityError(f"TensorRT cannot read {path.name}: {_line(errors)}")
    config = builder.create_builder_config()
    # On by default, and float32 with the precision of 10 bits.
    config.clear_flag(trt.BuilderFlag.TF32)
    shapes = builder.create_optimization_profile()
    shapes.set_shape(given, *profile)
    config.add_optimization_profile(shapes)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise LoadError(f"TensorRT cannot build an engine of {path.name} here: {_line(log.errors)}")
    return engine


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(msg)

    return Log()


def _write(path: Path, engine: Any) -> None:
    """One rename, so that no worker ever reads half an engine."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(engine)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _line(errors: Sequence[str]) -> str:
    return " ".join(" ".join(errors).split())[:400] or "its log says nothing"
