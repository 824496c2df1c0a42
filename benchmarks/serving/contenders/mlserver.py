"""MLServer."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.serving.contender import Request
from benchmarks.serving.peer import Peer
from marsmith.addresses import free_ports


class MlServer(Peer):
    """The V2 inference protocol: a tensor of BYTES, one or several pictures a request."""

    recommended = (
        "MLServer, 'Custom Inference Runtimes' (MLModel with load and predict), 'Content Types' "
        "(base64 in, str out), 'Adaptive Batching' (8 within 10 ms), 'Parallel Inference' "
        "(parallel_workers, one for each core); `mlserver start` on a folder with settings.json "
        "and model-settings.json."
    )
    environment = "mlserver"

    def command(self, port: int) -> Sequence[object]:
        served = self.folder / "served"
        served.mkdir(exist_ok=True)
        grpc, metrics = free_ports(2)
        ports = {"http_port": port, "grpc_port": grpc, "metrics_port": metrics}
        settings = {"host": "127.0.0.1", **ports, "parallel_workers": self.subject.cores}
        # Or it logs every request.
        settings["debug"] = False
        model = {
            "name": "model",
            "implementation": "mlserver_app.Classifier",
            "max_batch_size": 8,
            "max_batch_time": 0.01,
        }
        (served / "settings.json").write_text(json.dumps(settings))
        (served / "model-settings.json").write_text(json.dumps(model))
        return [self.interpreter().with_name("mlserver"), "start", served]

    def request(self, pictures: Sequence[bytes]) -> Request:
        tensor = {
            "name": "images",
            "shape": [len(pictures)],
            "datatype": "BYTES",
            "parameters": {"content_type": "base64"},
            "data": [base64.b64encode(one).decode("ascii") for one in pictures],
        }
        body = json.dumps({"inputs": [tensor]}).encode()
        return Request("/v2/models/model/infer", body, "application/json")

    def answers(self, body: bytes) -> list[Any]:
        return [json.loads(each) for each in json.loads(body)["outputs"][0]["data"]]
