"""The log line of a request that failed: one line, JSON, with TorchServe's request id."""

from __future__ import annotations

import json
import logging
import traceback

from handlers.bundle import Bundle
from handlers.errors import RequestError

logger = logging.getLogger(__name__)

PREFIX = "marsmith: failed "
_TRACE = 4000


def log(error: RequestError, bundle: Bundle, request: str | None) -> None:
    """Write ``marsmith: failed {...}``: request, model, version, status, error, message, trace.

    ``request`` is what the client got as ``x-request-id``. The trace, its last 4000 characters, is
    there only where the server is at fault. JSON escapes line ends, so that nothing a client sends
    can look like another line.
    """
    fields = {
        "request": request,
        "model": bundle.name,
        "version": bundle.version,
        "status": error.status,
        "error": type(error).__name__,
        "message": str(error),
    }
    if error.__cause__ is not None and error.status >= 500:
        fields["trace"] = "".join(traceback.format_exception(error.__cause__))[-_TRACE:]
    level = logging.ERROR if error.status >= 500 else logging.WARNING
    logger.log(level, "%s%s", PREFIX, json.dumps(fields))


def forget(error: RequestError) -> None:
    """Drop the tracebacks of an error that was answered.

    Their frames hold the batch, and the batch holds the error: gigabytes of pictures would stay
    until Python looks for cycles, which it does by the number of objects and not by their size.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
