"""What an archive is made of and needs, as a CycloneDX 1.6 bill of materials.

The same archive gives the same bytes: the serial number follows from the content, and there is a
timestamp only where ``SOURCE_DATE_EPOCH`` gives one.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement

from handlers.bundle import DECODE_FILE, Bundle
from handlers.integrity import sha256
from handlers.plugins import load_runtime, load_task
from marsmith import sources
from marsmith.archive import moment

FILE = "sbom.cdx.json"
# What every worker imports, of TorchServe and of the handlers, and what most do.
_BASE = ("torchserve", "PyYAML", "numpy", "pillow", "simplejpeg")
_TORCH = ("torch", "torchvision")


def write(bundle: Bundle, folder: Path) -> None:
    """Write the bill of a staged archive, whose artifact is there already."""
    task = load_task(bundle.task)
    torch = task.needs_torch(bundle)
    modules = {*task.requires, *_imported(bundle, folder)}
    model = Component(
        name=bundle.name,
        version=bundle.version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"model:{bundle.name}",
        hashes=[_hash(sha256(folder / bundle.artifact))],
        licenses=[LicenseFactory().make_from_string(bundle.provenance["licence"])],
        description=bundle.provenance["description"] or None,
    )
    bom = Bom(
        components=[
            *_origins(bundle),
            *map(_package, needed(bundle.runtime, modules, torch)),
        ],
        metadata=BomMetaData(component=model),
    )
    needs = [part for part in bom.components if part.type is ComponentType.LIBRARY]
    bom.register_dependency(model, bom.components)
    for package in needs:
        direct = {name for name, _ in _requires(package.name)}
        bom.register_dependency(package, [one for one in needs if one.name in direct])
    content = json.loads(JsonV1Dot6(bom).output_as_string())
    del content["serialNumber"], content["metadata"]["timestamp"]
    if "SOURCE_DATE_EPOCH" in os.environ:
        content["metadata"]["timestamp"] = moment().isoformat()
    digest = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content, sort_keys=True))
    text = json.dumps({**content, "serialNumber": f"urn:uuid:{digest}"}, indent=1, sort_keys=True)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def _imported(bundle: Bundle, folder: Path) -> set[str]:
    """What a worker imports for the network's own source, where it builds the network, or half of
    it."""
    # Here, since others who ask for packages do without torch.
    from handlers.servable import SOURCE

    if load_runtime(bundle.runtime).needs_source or (folder / DECODE_FILE).exists():
        return sources.imported((folder / SOURCE).rglob("*"))
    return set()


def providing(modules: Iterable[str]) -> list[str]:
    """The packages installed here that modules come from, sorted.

    As ``metadata.packages_distributions`` says, without reading what all the others are made of.
    """
    if not (wanted := {*modules}):
        return []
    names = "|".join(map(re.escape, wanted))
    recorded = re.compile(rf"^(?:{names})(?:/.*)?\.py,", re.MULTILINE)
    found = set()
    for package in metadata.distributions():
        declared = (package.read_text("top_level.txt") or "").split()
        if wanted & {*declared} if declared else recorded.search(package.read_text("RECORD") or ""):
            found.add(package.metadata["Name"])
    return sorted(found)


def needed(runtime: str, modules: Iterable[str] = (), torch: bool = True) -> list[str]:
    """Every package that a worker with this runtime, with those of the ``modules``, and with
    PyTorch where it computes with ``torch``, needs, by its normal name, sorted."""
    own = (*providing((*load_runtime(runtime).requires, *modules)), *(_TORCH if torch else ()))
    found: set[str] = set()
    # With the extras that each is wanted with.
    left = {(_plain(name), frozenset[str]()) for name in (*_BASE, *own)}
    seen = set(left)
    while left:
        found |= {name for name, _ in left}
        wanted = {need for name, extras in left for need in _requires(name, extras)}
        left = wanted - seen
        seen |= left
    return sorted(found)


def _requires(name: str, extras: Iterable[str] = ()) -> Iterator[tuple[str, frozenset[str]]]:
    """The packages that one needs on this host, each with the extras that it is wanted with."""
    try:
        lines: Iterable[str] = metadata.requires(name) or ()
    except metadata.PackageNotFoundError:
        return
    for requirement in map(_parsed, lines):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield _plain(requirement.name), frozenset(requirement.extras)


# Each package is asked twice: what it brings, and on which of all it depends.
_parsed = cache(Requirement)


def _package(name: str) -> Component:
    """A package as it is installed here; without a version where it is not installed."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = None
    purl = PackageURL("pypi", name=name, version=version)
    return Component(name=name, version=version, bom_ref=purl.to_string(), purl=purl)


def _origins(bundle: Bundle) -> Iterator[Component]:
    """The files that the model was made of."""
    spec: dict[str, Any] = bundle.provenance["spec"]
    for key in ("weights", "artifact"):
        if digest := (spec.get(key) or {}).get("sha256"):
            yield Component(
                name=spec[key]["file"],
                type=ComponentType.FILE,
                bom_ref=f"{key}:{digest}",
                hashes=[_hash(digest)],
            )


def _hash(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
