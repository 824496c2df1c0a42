"""An archive with other serving settings and the same artifact: nothing is exported again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from handlers.bundle import Bundle
from marsmith import archive
from marsmith.spec import ModelSpec
from marsmith.spec_parts import ServingSpec
from marsmith.tuning.points import Point


def serving_of(spec: ModelSpec, point: Point) -> ServingSpec:
    """The spec's serving settings with those of a point; it was measured on this host's cores."""
    said = spec.serving.model_dump(exclude_unset=True, exclude={"cores"})
    queue = max(spec.serving.queue_size, point.batch_size)
    return ServingSpec.model_validate({**said, "queue_size": queue, **point.serving()})


def restage(
    source: Path, target: Path, serving: ServingSpec, options: Mapping[str, Any] | None = None
) -> None:
    """Write the archive ``source`` to ``target`` with settings of its own and a new record.

    The artifact takes as many pictures a call as it was built for: that must be no fewer.
    ``options`` of the runtime are those that it does not depend on.
    """
    with tempfile.TemporaryDirectory(prefix=".restage-", dir=target.parent) as temporary:
        folder = Path(temporary)
        archive.unpack(source, folder)
        # The manifest and the record, which ``pack`` writes anew.
        shutil.rmtree(folder / "MAR-INF")
        bundle = Bundle.read(folder)
        limits = replace(
            bundle.limits,
            workers=serving.workers,
            threads=serving.threads,
            batch_size=serving.batch_size,
        )
        said = serving.model_dump(mode="json", exclude_defaults=True)
        made_of = {**bundle.provenance["spec"], "serving": said}
        if options:
            made_of["runtime_options"] = {**made_of.get("runtime_options", {}), **options}
        changed = replace(
            bundle,
            limits=limits,
            runtime_options={**bundle.runtime_options, **(options or {})},
            provenance={**bundle.provenance, "spec": made_of},
        )
        changed.write(folder)
        (folder / "model-config.yaml").write_text(serving.model_config_yaml(), "utf-8")
        archive.pack(folder, changed, target)
