"""BentoML: a batchable API (adaptive batching) of a service with a worker for each core."""

import os
from typing import Any

import bentoml
import picture_model
from PIL.Image import Image


@bentoml.service(
    workers=len(os.sched_getaffinity(0)),
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
)
class Classifier:
    """Takes and gives lists, which BentoML makes of the requests that wait."""

    def __init__(self) -> None:
        self.model = picture_model.load()

    @bentoml.api(batchable=True, max_batch_size=8)
    def predict(self, images: list[Image]) -> list[Any]:
        answers: list[Any] = self.model.predict([self.model.prepare(one) for one in images])
        return answers
