"""Log lines of requests: one line each, JSON, with TorchServe's request id."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Sequence
from typing import Any

from handlers.bundle import Bundle
from handlers.errors import RequestError

logger = logging.getLogger(__name__)

_TRACE = 4000


def failed(error: RequestError, bundle: Bundle, request: str | None) -> None:
    """Write ``marsmith: failed {...}``: request, model, version, status, error, message, trace.

    ``request`` is what the client got as ``x-request-id``. The trace, its last 4000 characters, is
    there only where the server is at fault. JSON escapes line ends, so that nothing a client sends
    can look like another line.
    """
    fields = {
        **_fields(bundle, request, error.status),
        "error": type(error).__name__,
        "message": str(error),
    }
    if error.__cause__ is not None and error.status >= 500:
        fields["trace"] = "".join(traceback.format_exception(error.__cause__))[-_TRACE:]
    level = logging.ERROR if error.status >= 500 else logging.WARNING
    logger.log(level, "marsmith: failed %s", json.dumps(fields))


def answered(bundle: Bundle, requests: Sequence[str | None], seconds: float, batch: int) -> None:
    """Write ``marsmith: answered {...}`` for each of these requests of a batch of ``batch``.

    Fields are request, model, version and status as in ``failed``, and milliseconds and batch: how
    long the handler had the batch, which took ``seconds``, and of how many requests it was.
    """
    more = {"milliseconds": round(seconds * 1e3, 2), "batch": batch}
    for request in requests:
        fields = {**_fields(bundle, request, 200), **more}
        logger.info("marsmith: answered %s", json.dumps(fields))


def _fields(bundle: Bundle, request: str | None, status: int) -> dict[str, Any]:
    return {
        "request": request,
        "model": bundle.name,
        "version": bundle.version,
        "status": status,
    }


def forget(error: RequestError) -> None:
    """Drop the tracebacks of an error that was answered.

    Their frames hold the batch, and the batch holds the error: gigabytes of pictures would stay
    until Python looks for cycles, which it does by the number of objects and not by their size.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
