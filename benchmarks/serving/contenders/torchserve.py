"""TorchServe with the handlers that come with it, as installed and at their best tuning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
import yaml
from PIL import Image
from torchvision import transforms

from benchmarks.serving.contender import Address, Request, Server
from benchmarks.serving.subject import Subject
from handlers import memory
from handlers.errors import BuildError
from handlers.inputs import ImageInput
from handlers.pictures import Picture
from marsmith.addresses import Addresses, Tokens, bearer, free_addresses
from marsmith.environment import find_java

_HANDLERS = {
    "image-classification": "image_classifier",
    "semantic-segmentation": "image_segmenter",
    "object-detection": "object_detector",
}
_VARIANTS = (
    "installed",
    "tuned",
    "tuned-torchscript",
    "tuned-compile",
    "tuned-batch",
    "tuned-compile-batch",
    "tuned-malloc",
    "tuned-compile-malloc",
    "tuned-batch-malloc",
    "nothing",
)
# What ours sets in its process.
_KEEPING = {
    "MALLOC_MMAP_THRESHOLD_": str(memory.LARGEST),
    "MALLOC_TRIM_THRESHOLD_": str(memory.KEPT),
}
# The geometry that image_classifier has built in, and image_segmenter as well.
_RESIZE, _CROP = 256, 224
_MODEL = """import torch
from torchvision.models import get_model

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = get_model({name!r}, weights=None, {backbone}**{arguments!r})

    def forward(self, images):
        return self.network(images)
"""


def _differs(given: ImageInput) -> bool:
    """Whether an input is prepared otherwise than those handlers do it."""
    theirs = ImageInput(resize=_RESIZE, crop=_CROP)
    names = ("resize", "crop", "interpolation", "mean", "std")
    return any(getattr(given, name) != getattr(theirs, name) for name in names)


# As TorchServe's MNIST example changes the preprocessing of a handler that it comes with.
_HANDLER = """from torchvision import transforms
from ts.torch_handler.{module} import {base}

class Handler({base}):
    image_processing = transforms.Compose([
        {geometry},
        transforms.ToTensor(),
        transforms.Normalize(mean={mean!r}, std={std!r}),
    ])
"""
_NOTHING = """def handle(rows, context):
    return [b'[]'] * len(rows) if rows else []
"""


class Stock(Server):
    """``torchserve/installed``, ``tuned...``, and ``nothing``, whose handler does nothing."""

    part = "stock"
    recommended = (
        "TorchServe's own examples: `torch-model-archiver --model-file --serialized-file --handler "
        "image_classifier` (eager state_dict), `torchserve --start --ncs`. installed: no setting "
        "but ports. tuned, by its performance checklist: a worker for each core, one thread "
        "each (OMP_NUM_THREADS=1); tuned-torchscript serves a traced file, tuned-compile adds pt2 "
        "compile, tuned-batch batchSize 8 within 5 ms, tuned-compile-batch both; -malloc adds "
        "glibc's thresholds that ours sets for PyTorch, which no page of theirs names. A model of "
        "another size than 256/224 gets a subclass with its image_processing, as the MNIST example "
        "has. nothing: a handler that answers at once, batchSize 8, one worker."
    )
    tasks = tuple(_HANDLERS)
    environment = "torchserve"

    @classmethod
    def variants(cls, subject: Subject) -> list[str]:
        if subject.spec.task != "image-classification":
            return ["installed", "tuned", "tuned-compile", "tuned-malloc"]
        return list(_VARIANTS)

    @property
    def answers_pictures(self) -> bool:  # type: ignore[override]
        return self.variant != "nothing"

    def prepare(self) -> None:
        if self.variant not in _VARIANTS:
            raise BuildError(f"torchserve/{self.variant}: accepted are {', '.join(_VARIANTS)}")
        source = self.folder / "source"
        source.mkdir()
        (self.folder / "model-store").mkdir()
        words = self._nothing(source) if self.variant == "nothing" else self._model(source)
        if settings := self._settings():
            (source / "model-config.yaml").write_text(yaml.safe_dump(settings))
            words += ["--config-file", source / "model-config.yaml"]
        command = [Path(sys.executable).parent / "torch-model-archiver", "--version", "1.0", *words]
        command += ["--model-name", self.subject.spec.name]
        command += ["--export-path", self.folder / "model-store"]
        done = subprocess.run(
            list(map(str, command)), cwd=source, capture_output=True, text=True, timeout=120,
            env={**os.environ, "TMPDIR": str(self.folder)},
        )  # fmt: skip
        if done.returncode:
            raise BuildError(f"torch-model-archiver: {done.stderr.strip()[-300:]}")

    def _settings(self) -> dict[str, Any]:
        if self.variant == "installed":
            return {}
        if self.variant == "nothing":
            return {"minWorkers": 1, "maxWorkers": 1, "batchSize": 8, "maxBatchDelay": 5}
        workers = {"minWorkers": self.subject.cores, "maxWorkers": self.subject.cores}
        settings: dict[str, Any] = {**workers}
        if "-compile" in self.variant:
            # Each worker compiles at its first request: minutes on a busy machine.
            settings["pt2"] = {"compile": {"enable": True, "backend": "inductor"}}
            settings["responseTimeout"] = round(self.patience)
        if "-batch" in self.variant:
            settings |= {"batchSize": 8, "maxBatchDelay": 5}
        return settings

    def _nothing(self, source: Path) -> list[Any]:
        (source / "nothing.py").write_text(_NOTHING)
        return ["--handler", source / "nothing.py"]

    def _model(self, source: Path) -> list[Any]:
        """The network, its labels and its handler, as words for the archiver."""
        spec, given = self.subject.spec, self.subject.handler.bundle.input
        labels = self.subject.handler.bundle.labels
        (source / "index_to_name.json").write_text(
            json.dumps({str(index): label for index, label in enumerate(labels)})
        )
        name = spec.architecture.partition(":")[2]
        classifies = spec.task == "image-classification"
        backbone = "" if classifies else "weights_backbone=None, "
        code = _MODEL.format(name=name, arguments=spec.arguments, backbone=backbone)
        (source / "model.py").write_text(code)
        state = {f"network.{key}": value for key, value in self.subject.state_dict().items()}
        handler: Any = _HANDLERS[spec.task]
        # A detector resizes and normalises by itself, and object_detector leaves both to it.
        if spec.task != "object-detection" and _differs(given):
            module, handler = handler, source / "handler.py"
            base = "".join(word.title() for word in module.split("_"))
            geometry = ", ".join(f"transforms.{step}" for step in self._geometry())
            texts = {"module": module, "base": base, "geometry": geometry}
            handler.write_text(_HANDLER.format(**texts, mean=given.mean, std=given.std))
        words = ["--handler", handler, "--extra-files", source / "index_to_name.json"]
        if self.variant == "tuned-torchscript":
            return [*words, "--serialized-file", self._traced(source, code, state)]
        torch.save(state, source / "weights.pth")
        words += ["--model-file", source / "model.py"]
        return [*words, "--serialized-file", source / "weights.pth"]

    def _geometry(self) -> list[str]:
        """The model's own resizing, as torchvision's transforms are written."""
        given = self.subject.handler.bundle.input
        mode = f"transforms.InterpolationMode.{given.interpolation.upper()}"
        steps = [] if given.resize is None else [f"Resize({given.resize!r}, {mode})"]
        return steps if given.crop is None else [*steps, f"CenterCrop({given.crop!r})"]

    def _traced(self, source: Path, code: str, state: dict[str, torch.Tensor]) -> Path:
        made: dict[str, Any] = {}
        exec(code, made)
        network = made["Model"]()
        network.load_state_dict(state)
        side = self.subject.handler.bundle.input.crop
        shape = (side, side) if isinstance(side, int) else tuple(side or (224, 224))
        with warnings.catch_warnings():
            # torch.jit warns at every call that it is deprecated.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(network.eval(), torch.zeros(1, 3, *shape))
            torch.jit.save(torch.jit.freeze(traced), str(source / "model.pt"))
        return source / "model.pt"

    def start(self) -> None:
        properties = {**free_addresses(), "model_store": str(self.folder / "model-store")}
        config = self.folder / "config.properties"
        config.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        java = find_java(
            {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        )
        environ = {
            # Where the launcher finds java and the environment's python finds its workers.
            "PATH": f"{self.interpreter().parent}:{java.parent}:{os.environ['PATH']}",
            "TEMP": str(self.folder),
            "TS_CONFIG_FILE": str(config),
        }
        if self.variant.startswith("tuned"):
            environ["OMP_NUM_THREADS"] = "1"
        if self.variant.endswith("-malloc"):
            environ |= _KEEPING
        model = self.subject.spec.name
        command = [self.interpreter(), "-m", "ts.model_server", "--start", "--ncs", "--foreground"]
        command += ["--models", f"{model}={model}.mar"]
        self.process = self.launch(command, environ)
        self._properties = properties

    def wait_ready(self, picture: bytes) -> None:
        self.address = Address(Addresses.of(self._properties).inference, {})
        super().wait_ready(picture)

    def ask(self, picture: bytes, seconds: float | None = None) -> bytes:
        # The key file is there once the front end has started.
        tokens = Tokens.read(self.folder)
        self.address = Address(self.address.url, bearer(tokens.inference))
        return super().ask(picture, seconds)

    def role(self, process: psutil.Process) -> str:
        if process.name() == "java":
            return "front end"
        return "worker" if "model_service_worker" in " ".join(process.cmdline()) else "launcher"

    def request(self, pictures: Sequence[bytes]) -> Request | None:
        if len(pictures) > 1:
            return None
        return Request(f"/predictions/{self.subject.spec.name}", pictures[0])

    def answers(self, body: bytes) -> list[Any]:
        found = json.loads(body)
        if self.subject.spec.task == "image-classification":
            return [[{"label": label, "score": score} for label, score in found.items()]]
        if self.subject.spec.task == "object-detection":
            return [[_box(each) for each in found]]
        ids = np.array(found)[:, :, 0].round().astype(np.uint8)
        confidence = np.full_like(ids, 255)
        handler = self.subject.handler
        picture = Picture.of(Image.new("RGB", ids.shape[::-1]))
        return [handler.postprocess((ids, confidence), picture, handler.defaults())]

    def score(self, answers: Sequence[Any], truths: Sequence[Any]) -> float:
        """image_segmenter answers in pixels of the model's input: the truth is resized likewise."""
        if self.subject.spec.task == "semantic-segmentation":
            truths = [self._as_input(truth) for truth in truths]
        return super().score(answers, truths)

    def _as_input(self, truth: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        given, nearest = self.subject.handler.bundle.input, transforms.InterpolationMode.NEAREST
        picture = Image.fromarray(truth)
        if given.resize is not None:
            picture = transforms.Resize(given.resize, nearest)(picture)
        if given.crop is not None:
            picture = transforms.CenterCrop(given.crop)(picture)
        return np.asarray(picture)


def _box(found: dict[str, Any]) -> dict[str, Any]:
    [(label, box)] = [(key, value) for key, value in found.items() if key != "score"]
    box = np.array(box).ravel()
    sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(float, box), strict=True))
    return {"label": label, "score": found["score"], "box": sides}
