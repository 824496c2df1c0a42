"""What an answer needs so that TorchServe's gRPC call StreamPredictions harms nobody.

TorchServe looks in the answer to that call for a header that says whether more will follow. Where
it is missing its front end fails with a NullPointerException and ends the worker, with all
requests that wait for it. A worker cannot see which call it answers.
"""

from __future__ import annotations

from typing import Any


def finish(context: Any, index: int) -> None:
    """Say that nothing follows the answer at ``index``, where it goes to gRPC.

    Over REST, whose requests have headers, the same would make it a stream without a beginning.
    """
    headers = context.get_all_request_header(index)
    # TorchServe mixes those of fields, which are dicts, into those of the request.
    if not any(isinstance(value, str) for value in headers.values()):
        context.set_response_header(index, "ts_stream_next", "false")
