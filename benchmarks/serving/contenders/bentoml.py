"""BentoML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.serving import multipart
from benchmarks.serving.contender import Request
from benchmarks.serving.peer import APPS, Peer


class BentoMl(Peer):
    """A form of files: one or several pictures a request."""

    recommended = (
        "BentoML, 'Input and output types' (PIL images as multipart files), 'Adaptive batching' "
        "(batchable=True with list in and list out, max_batch_size 8), 'Workers' (one for each "
        "core), `bentoml serve`."
    )
    environment = "bentoml"

    def command(self, port: int) -> Sequence[object]:
        start = [self.interpreter(), "-m", "bentoml", "serve", "bentoml_app:Classifier"]
        place = ["--host", "127.0.0.1", "--port", str(port), "--working-dir", APPS]
        return [*start, *place]

    def settings(self) -> Mapping[str, str]:
        return {"BENTOML_HOME": str(self.folder), "BENTOML_DO_NOT_TRACK": "true"}

    def request(self, pictures: Sequence[bytes]) -> Request:
        return Request("/predict", multipart.encode("images", pictures), multipart.CONTENT_TYPE)
