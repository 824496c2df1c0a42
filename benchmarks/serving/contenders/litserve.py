"""LitServe."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.serving.contender import Request
from benchmarks.serving.peer import APPS, Peer


class LitServe(Peer):
    """One picture a request, as base64 in JSON."""

    recommended = (
        "LitServe, 'Speed up serving by 200x' (an image classifier: base64 in JSON, "
        "max_batch_size and batch_timeout, workers_per_device) with a worker for each core, "
        "batches of 8 within 10 ms; decode_request in the worker as there."
    )
    environment = "litserve"

    def command(self, port: int) -> Sequence[object]:
        return [self.interpreter(), APPS / "litserve_app.py", str(port)]

    def request(self, pictures: Sequence[bytes]) -> Request | None:
        if len(pictures) > 1:
            return None
        body = json.dumps({"image_data": base64.b64encode(pictures[0]).decode("ascii")})
        return Request("/predict", body.encode(), "application/json")

    def answers(self, body: bytes) -> list[Any]:
        return [json.loads(body)["prediction"]]
