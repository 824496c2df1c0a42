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
