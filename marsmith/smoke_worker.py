"""Runs in a clean process with an unpacked archive as its folder: load, answer, refuse garbage.

It imports what every worker does while the build is still at work, and waits for a line that says
that the archive is there. It talks to TorchServe's ``Service`` as the worker's socket loop does,
and may import nothing of the pipeline: it proves that the archive is whole.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import struct
import sys
from pathlib import Path
from typing import Any

import ts
import ts.protocol.otf_message_handler
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.model_loader import ModelLoaderFactory


def main(folder: Path) -> None:
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    manifest = json.loads((folder / "MAR-INF/MANIFEST.json").read_text("utf-8"))["model"]
    metrics = MetricsCacheYamlImpl(str(Path(ts.__file__).parent / "configs/metrics.yaml"))
    metrics.initialize_cache()
    metrics.model_name = manifest["modelName"]
    from handlers import device, golden

    service = ModelLoaderFactory.get_model_loader().load(
        manifest["modelName"],
        str(folder),
        manifest["handler"],
        device.FIRST,
        2,
        None,
        True,
        metrics,
    )
    service.set_cl_socket(None)
    picture = (folder / golden.read(folder)[0].picture).read_bytes()
    reply = service.predict([_request(b"good", picture), _request(b"bad", b"no picture")])
    expect(statuses(reply), {"good": 200, "bad": 415})
    strangers = {
        name
        for name, module in sys.modules.items()
        if name.split(".")[0] in ("handlers", "marsmith")
        and not str(getattr(module, "__file__", "")).startswith(str(folder))
    }
    expect(strangers, set())


def expect(found: Any, wanted: Any) -> None:
    """Stop the process with one line when something is not as it must be."""
    if found != wanted:
        sys.exit(f"smoke: found {found}, expected {wanted}")


def _request(name: bytes, body: bytes) -> dict[str, Any]:
    parameter = {"name": "body", "contentType": "", "value": bytearray(body)}
    return {"requestId": name, "headers": [], "parameters": [parameter]}


def statuses(message: bytes) -> dict[str, int]:
    """Status by request id in a worker's reply (the layout of ts.protocol.otf_message_handler)."""
    at = 4

    def number() -> int:
        nonlocal at
        at += 4
        return int(struct.unpack_from("!i", message, at - 4)[0])

    def text() -> str:
        nonlocal at
        length = number()
        at += length
        return message[at - length : at].decode("utf-8", "replace")

    text()
    found = {}
    while (length := number()) != -1:
        at += length
        request = message[at - length : at].decode()
        text()
        found[request] = number()
        text()
        for _ in range(number()):
            text()
            text()
        text()
    return found


if __name__ == "__main__":
    # As no garbage ever: looking through torch's objects again and again takes part of a second.
    gc.freeze()
    if not sys.stdin.readline():
        sys.exit("smoke: no archive came")
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    # Freeing torch's modules one by one takes a second, and proves nothing.
    os._exit(0)
