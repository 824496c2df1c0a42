"""What is served: one model with labelled pictures, as archives and as plain files for others."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.serving.pictures import Picture, labelled, rendered
from handlers import plugins
from handlers.errors import BuildError, SpecError
from handlers.task import TaskHandler
from marsmith import preparing, quantise, resolve, weights
from marsmith.archive import file_name, unpack
from marsmith.spec import ModelSpec, load, parse
from marsmith.tuning.fingerprint import of_pair

PROJECT = Path(__file__).parents[2]
# Archives of earlier runs, by a digest of everything that they were made of.
STORE = PROJECT / "build/benchmark-archives"
_BUILD_SECONDS = 900


@dataclass(frozen=True)
class Subject:
    """A model of torchvision's with its pictures; ``cores`` are those that may be used.

    ``serving`` replaces keys of the model file's serving part in our archives.
    """

    spec: ModelSpec
    pictures: Sequence[Picture]
    cores: int
    serving: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        model: str,
        weights_file: Path | None = None,
        folder: Path | None = None,
        count: int = 200,
        serving: Mapping[str, int] | None = None,
    ) -> Subject:
        """The model file (a name of models/, or a path) with pictures of ``folder``.

        Without a folder they are rendered, which suits the models with weights in the repository.
        """
        path = Path(model) if model.endswith((".yaml", ".yml")) else Path(f"models/{model}.yaml")
        file = (PROJECT / path) if not path.is_file() else path.absolute()
        if not file.is_file():
            raise SpecError(f"no model {model}: name a file of models/ or give a path")
        overrides = {"weights": {"file": str(weights_file.absolute())}} if weights_file else None
        spec = load(file, overrides)
        if not spec.architecture.startswith("torchvision:"):
            raise SpecError(
                f"{spec.name} is no network of torchvision's, which is what the other servers load"
            )
        given_input = resolve.image_input(spec)
        if given_input.color != "rgb" or given_input.letterbox is not None:
            raise SpecError(f"{spec.name}: the other servers' transforms take RGB, no letterbox")
        if folder is None:
            pictures = rendered(spec.task, count)
        else:
            taken = spec.calibration and quantise.calibration_files(spec.calibration, PROJECT)
            pictures = labelled(folder, handler_of(spec), count, quantise.digests(taken or []))
        return cls(spec, pictures, len(os.sched_getaffinity(0)), serving or {})

    @functools.cached_property
    def handler(self) -> TaskHandler:
        """A handler without a model: it knows the task's metric and the labels."""
        return handler_of(self.spec)

    def score(self, answers: Sequence[Any], truths: Sequence[Any]) -> float:
        """The task's metric of answers (with ``widest`` options), truths in the same order."""
        task = self.handler
        return task.metric([task.evidence(*each) for each in zip(answers, truths, strict=True)])

    def offered(self) -> list[tuple[str, str]]:
        """The (runtime, precision) that a build takes for this model with what is installed."""
        found = []
        for runtime in plugins.names("runtimes"):
            loaded = plugins.load_runtime(runtime)
            packages = (*loaded.requires, *loaded.export_requires)
            if not hasattr(loaded, "export") or any(find_spec(name) is None for name in packages):
                continue
            for precision in loaded.precisions:
                try:
                    self._fields(runtime, precision, {})
                except SpecError:
                    # A precision of the runtime's that a spec does not take.
                    continue
                found.append((runtime, precision))
        return found

    def archive(self, runtime: str, precision: str, **serving: int) -> Path:
        """Our archive of this model, built where no earlier run has; raises BuildError."""
        fields = self._fields(runtime, precision, serving)
        text = yaml.safe_dump(fields, sort_keys=True)
        made_of = of_pair(parse(fields, self.spec.name), PROJECT, runtime, precision)
        store = STORE / hashlib.sha256(text.encode() + made_of.encode()).hexdigest()[:16]
        target = store / file_name(self.spec.name, self.spec.version)
        if target.is_file():
            return target
        store.mkdir(parents=True, exist_ok=True)
        file = store / f"{self.spec.name}.yaml"
        file.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "marsmith", "build", str(file), "--store", str(store)]
        done = subprocess.run(
            command, cwd=PROJECT, capture_output=True, text=True, timeout=_BUILD_SECONDS
        )
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines()
            raise BuildError(f"{runtime}:{precision}: {words[-1] if words else 'the build failed'}")
        return target

    def _fields(self, runtime: str, precision: str, serving: Mapping[str, int]) -> dict[str, Any]:
        """A model file of this model in another runtime; raises SpecError where there is none.

        ``int8+tensor+workers=2`` is the precision with the input's ``backend: tensor`` and a
        setting of its serving part.
        """
        given = self.spec.on(runtime).model_dump(mode="json", exclude_unset=True)
        precision, *changes = precision.split("+")
        backend = next((change for change in changes if "=" not in change), None)
        said = serving_settings([change for change in changes if "=" in change])
        if backend:
            geometry = asdict(resolve.image_input(self.spec))
            given["input"] = {**geometry, **given.get("input", {}), "backend": backend}
        given |= {"runtime": runtime, "precision": precision}
        own = given.get("serving", {})
        # The file's settings may be for a host of fewer cores, or of more.
        cores = max(self.cores, own.get("cores", 0))
        given["serving"] = {**own, "cores": cores, **self.serving, **said, **serving}
        file = weights.locate(self.spec, PROJECT)
        given["weights"] = {**given["weights"], "file": str(file.absolute())}
        parse(given, f"{runtime}:{precision}")
        return given

    def unpacked(self, folder: Path, runtime: str, precision: str, **serving: int) -> Path:
        """Our archive, unpacked into a new folder below ``folder``."""
        target = folder / f"{runtime}-{precision}"
        if not target.exists():
            unpack(self.archive(runtime, precision, **serving), target)
        return target

    def openvino(self, folder: Path, precision: str) -> Path:
        """The intermediate representation out of our archive: ``model.xml`` beside its weights."""
        target = folder / f"openvino-{precision}"
        with zipfile.ZipFile(self.archive("openvino", precision)) as opened:
            for name in ("model.xml", "model.bin"):
                opened.extract(name, target)
        return target / "model.xml"

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The network's weights."""
        return weights.load(weights.locate(self.spec, PROJECT))

    def describe(self, folder: Path, **more: Any) -> Path:
        """A JSON file that tells other servers what the model is; see ``peers.picture_model``."""
        given = self.handler.bundle.input
        file = folder / "model.json"
        saved = folder / "weights.pth"
        torch.save(self.state_dict(), saved)
        described = {
            "network": self.spec.architecture.partition(":")[2],
            "arguments": self.spec.arguments,
            "weights": str(saved),
            "labels": self.handler.bundle.labels,
            "resize": given.resize,
            "crop": given.crop,
            "interpolation": given.interpolation,
            "mean": given.mean,
            "std": given.std,
            **more,
        }
        file.write_text(json.dumps(described), encoding="utf-8")
        return file


def serving_settings(words: Sequence[str]) -> dict[str, int]:
    """KEY=NUMBER words as serving settings; raises SpecError."""
    parts = [word.partition("=") for word in words]
    for word, (_, _, number) in zip(words, parts, strict=True):
        if not number.isdecimal():
            raise SpecError(f"{word!r}: write KEY=NUMBER, such as workers=2")
    return {key: int(number) for key, _, number in parts}


def handler_of(spec: ModelSpec) -> TaskHandler:
    """A handler of the spec's task without a model."""
    handler = plugins.load_task(spec.task)()
    handler.bundle = preparing.unrecorded(spec, PROJECT)
    return handler
