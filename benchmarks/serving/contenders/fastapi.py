"""FastAPI under uvicorn."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.serving import multipart
from benchmarks.serving.contender import Request
from benchmarks.serving.peer import Peer


class FastApi(Peer):
    """A form of files: one or several pictures a request."""

    recommended = (
        "FastAPI, 'Request Files' (UploadFile; a list for several), 'Concurrency and async' (plain "
        "def for work that blocks), 'Lifespan Events' (the model is loaded once), 'Server Workers' "
        "(uvicorn --workers, one for each core). No batches over requests: it has none."
    )
    environment = "fastapi"

    def command(self, port: int) -> Sequence[object]:
        start = [str(self.interpreter()), "-m", "uvicorn", "fastapi_app:app", "--host", "127.0.0.1"]
        workers = str(self.subject.cores)
        return [*start, "--port", str(port), "--workers", workers, "--log-level", "warning"]

    def request(self, pictures: Sequence[bytes]) -> Request:
        return Request("/predict", multipart.encode("files", pictures), multipart.CONTENT_TYPE)
