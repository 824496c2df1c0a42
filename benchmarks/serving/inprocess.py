"""``python -m benchmarks.serving.inprocess FOLDER``: the handler of an unpacked archive, alone.

It takes jobs as JSON lines, {"files": [...], "seconds": S}, and answers with a JSON line each:
with the answers of all files where S is 0, or how many pictures it answered in how many seconds.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from ts.context import Context
from ts.service import Service as Rows

from handlers.bundle import Bundle
from handlers.entry import Service


class Handler:
    """A loaded archive, called with what TorchServe's protocol makes of raw bodies."""

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "MAR-INF/MANIFEST.json").read_text())
        self.batch_size = Bundle.read(folder).limits.batch_size
        name = manifest["model"]["modelName"]
        self._context = Context(name, str(folder), manifest, self.batch_size, None, "0.12.0")
        self._service = Service()
        self._service.initialize(self._context)

    def answer(self, bodies: list[bytes]) -> list[Any]:
        """The bodies of the answers to a batch."""
        rows = [{"name": "body", "contentType": "", "value": body} for body in bodies]
        batch = [
            {"requestId": b"%d" % i, "headers": [], "parameters": [row]}
            for i, row in enumerate(rows)
        ]
        processors, data, ids = Rows.retrieve_data_for_inference(batch)
        self._context.request_ids, self._context.request_processor = ids, processors
        return self._service.handle(data, self._context)


def main() -> None:
    """Serve jobs until the input ends."""
    handler = Handler(Path(sys.argv[1]))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        bodies = [Path(file).read_bytes() for file in job["files"]]
        done = (
            _measure(handler, bodies, job["seconds"]) if job["seconds"] else _all(handler, bodies)
        )
        print(json.dumps(done), flush=True)


def _all(handler: Handler, bodies: list[bytes]) -> dict[str, Any]:
    size = handler.batch_size
    batches = [bodies[i : i + size] for i in range(0, len(bodies), size)]
    return {"answers": [json.loads(a) for batch in batches for a in handler.answer(batch)]}


def _measure(handler: Handler, bodies: list[bytes], seconds: float) -> dict[str, Any]:
    pictures, count, start = cycle(bodies), 0, time.monotonic()
    while (passed := time.monotonic() - start) < seconds or not count:
        count += len(handler.answer(list(islice(pictures, handler.batch_size))))
    passed = time.monotonic() - start
    return {"pictures": count, "seconds": passed}


if __name__ == "__main__":
    main()
