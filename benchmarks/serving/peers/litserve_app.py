"""LitServe: base64 in JSON, dynamic batches and a worker for each core."""

import base64
import os
import sys
from typing import Any

import litserve
import picture_model


class Classifier(litserve.LitAPI):
    """Decodes singly, predicts in batches."""

    def setup(self, device: str) -> None:
        self.model = picture_model.load()

    def decode_request(self, request: dict[str, str]) -> Any:
        return self.model.decode(base64.b64decode(request["image_data"]))

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, inputs: list[Any]) -> list[Any]:
        answers: list[Any] = self.model.predict(inputs)
        return answers

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"prediction": output}


if __name__ == "__main__":
    litserve.LitServer(
        Classifier(max_batch_size=8, batch_timeout=0.01),
        accelerator="cpu",
        devices=1,
        workers_per_device=len(os.sched_getaffinity(0)),
    ).run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
