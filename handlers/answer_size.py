"""How large an answer TorchServe takes from a worker: at a larger one it ends the worker, and the
whole batch fails."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from handlers import properties
from handlers.errors import LoadError, TooLarge

logger = logging.getLogger(__name__)

# Of TorchServe, where its configuration does not say.
DEFAULT = 6_553_500


def limit() -> int:
    """``max_response_size``, in bytes, of the configuration that TS_CONFIG_FILE names.

    Where it names none, TorchServe's own, and the log says so: the front end may have been told
    of a file in another way. Raises LoadError where the size is no number.
    """
    file = os.environ.get("TS_CONFIG_FILE")
    if not file or not Path(file).is_file():
        logger.warning(
            "marsmith: warning: TS_CONFIG_FILE is %s, so that max_response_size is not known: "
            "answers of more than TorchServe's own %d bytes are refused. Start with `marsmith "
            "serve` or after `. ./env.sh`, or let TS_CONFIG_FILE name the configuration",
            f"no file ({file})" if file else "not set",
            DEFAULT,
        )
        return DEFAULT
    text = Path(file).read_text(encoding="utf-8", errors="replace")
    try:
        return int(properties.parse(text).get("max_response_size", DEFAULT))
    except ValueError as error:
        raise LoadError(
            f"max_response_size cannot be read from {file} ({error}): write a number of bytes"
        ) from error


def check(body: bytes, most: int) -> bytes:
    """``body``, or TooLarge where it has more than ``most`` bytes."""
    if len(body) > most:
        raise TooLarge(
            f"the answer has {len(body)} bytes, the server's max_response_size is {most}: ask for "
            "image/jpeg instead of image/png, for less, or send a smaller picture",
            max_response_size=most,
        )
    return body
