"""What a name on the command line stands for: a model file, or an archive and what it was made of.

Either tells of a network that can be looked at without its weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from handlers import golden
from handlers.bundle import Bundle
from handlers.errors import SpecError, WeightsError
from handlers.inputs import ImageInput
from handlers.integrity import sha256
from handlers.resampling import Pixels
from handlers.servable import SOURCE, Servable
from marsmith import archive, named, preparing, resolve, samples, store, weights
from marsmith.model_options import MODELS, STORE, caller
from marsmith.spec import ModelSpec, parse, weights_files
from marsmith.spec_parts import WeightsSpec

ARCHIVE = ".mar"


@dataclass(frozen=True)
class Subject:
    """A model: its ``spec``, the ``input`` that this or its preset says, and where to find a
    ``picture`` of its kind. ``path`` and ``folder`` are those of an archive and of what it holds,
    unpacked; None for a model file."""

    spec: ModelSpec
    input: ImageInput
    picture: Path
    path: Path | None = None
    folder: Path | None = None

    def network(self) -> Servable:
        """The servable module without its weights; raises SpecError for an artifact of others."""
        self._own()
        source = resolve.source_file(self.spec, Path.cwd())
        recipe = resolve.recipe(self.spec, self.input)
        return Servable.build(recipe, source.parent if source else Path())

    def trained(self, file: Path | None = None) -> Servable:
        """The servable module as a build makes it, with the state_dict in ``file`` or, for None,
        that of the spec, wherever the project has it; raises WeightsError."""
        self._own()
        given = self.spec.weights.model_copy(update={"file": str(file), "sha256": None})
        if file is None:
            given = _found(self.spec)
        spec = self.spec.model_copy(update={"weights": given})
        with tempfile.TemporaryDirectory(prefix="marsmith-") as folder:
            return preparing.prepare(spec, Path.cwd(), Path(folder))[0]

    def pixels(self, size: tuple[int, int] | None = None, picture: Path | None = None) -> Pixels:
        """A picture as the model takes it, uint8 (H, W, C); ``size`` (H, W) stretches it instead
        of what the spec says."""
        given = self.input
        if size is not None:
            given = replace(given, resize=list(size), crop=None, letterbox=None)
        return given.prepare(self.image(picture))

    def image(self, picture: Path | None = None) -> Image.Image:
        """The ``picture`` of this kind, or the one given."""
        path = picture or self.picture
        if not path.is_file():
            raise SpecError(f"no picture at {path}")
        return samples.opened(path, self.spec.serving.max_pixels)

    def _own(self) -> None:
        if self.spec.artifact is not None:
            raise SpecError(
                f"{self.spec.name} was exported by others: there is no PyTorch network to look at"
            )


def of_archive(path: Path, folder: Path) -> Subject:
    """The model of the archive at ``path``, which lies unpacked in ``folder``."""
    bundle = Bundle.read(folder)
    picture = folder / golden.read(folder)[0].picture
    return Subject(_spec(bundle, folder, path), bundle.input, picture, path, folder)


@contextmanager
def find(name: str, folder: Path = STORE) -> Iterator[Subject]:
    """The model NAME of models/ or torchvision, of a YAML file, or of an archive, unpacked for the
    while; one without a path may lie in the store ``folder``."""
    if not name.endswith(ARCHIVE):
        spec = named.load(name, caller())
        picture = samples.files(Path(spec.samples), "samples")[0]
        yield Subject(spec, resolve.image_input(spec), picture)
        return
    path = store.locate(Path(name), caller(), folder)
    with tempfile.TemporaryDirectory(prefix="marsmith-look-") as temporary:
        unpacked = Path(temporary)
        archive.unpack(path, unpacked)
        yield of_archive(path, unpacked)


def _spec(bundle: Bundle, folder: Path, path: Path) -> ModelSpec:
    """The spec that an archive was built from, with the source that it carries."""
    fields = dict(bundle.provenance.get("spec", {}))
    # Of its build alone, and earlier ones took keys that are refused now.
    fields.pop("parity", None)
    if "artifact" not in fields and "input" in fields:
        # Earlier ones did not record a mean that was the usual one.
        told = {"mean": list(bundle.input.mean), "std": list(bundle.input.std)}
        fields["input"] = {**fields["input"], **told}
    # It may be for a host of more cores than this one has.
    serving = fields.get("serving", {})
    cores = bundle.limits.workers * max(1, bundle.limits.threads)
    fields["serving"] = {**serving, "cores": max(cores, serving.get("cores", 0))}
    # An archive tells the name of the folder of samples alone, and carries two of them.
    fields["samples"] = str(folder / "golden")
    origin, _, name = str(fields.get("architecture", "")).rpartition(":")
    if name and origin != "torchvision":
        fields["architecture"] = f"{folder / SOURCE / Path(origin).name}:{name}"
    return parse({**fields, "labels": bundle.labels}, f"{path.name}, of which it was made")


def _found(spec: ModelSpec) -> WeightsSpec:
    """``spec.weights`` with the place of the file: an archive tells its name and sha256 alone."""
    given = spec.weights
    if given.file is None or given.sha256 is None:
        # Without a sha256 no file but the one that is named can be known to be it.
        return given
    name = Path(given.file).name
    places = [Path(given.file), Path("weights") / name, weights.CACHE / name]
    for place in [*places, *weights_files(MODELS)]:
        if place.is_file() and sha256(place) == given.sha256:
            return given.model_copy(update={"file": str(place)})
    if given.torchvision and weights.torchvision_weights(spec).url.endswith(f"/{name}"):
        # Downloaded again.
        return given.model_copy(update={"file": None})
    raise WeightsError(
        f"the weights {name} (sha256 {given.sha256}) of {spec.name} are not in this project: give "
        "their file with --weights"
    )
