"""Ray Serve: a replica with one CPU for each core, and dynamic request batching."""

import os
import sys
from typing import Any

import picture_model
import ray
from ray import serve
from starlette.requests import Request

CORES = len(os.sched_getaffinity(0))


@serve.deployment(num_replicas=CORES, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64)
class Classifier:
    """The body is the picture."""

    def __init__(self) -> None:
        self.model = picture_model.load()

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.01)
    async def classify(self, bodies: list[bytes]) -> list[Any]:
        answers: list[Any] = self.model.predict([self.model.decode(body) for body in bodies])
        return answers

    async def __call__(self, request: Request) -> Any:
        return await self.classify(await request.body())


if __name__ == "__main__":
    ray.init(
        num_cpus=CORES,
        include_dashboard=False,
        _temp_dir=sys.argv[2],
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(sys.argv[1])},
        logging_config={"enable_access_log": False},
    )
    serve.run(Classifier.bind(), blocking=True)
