"""How large an answer TorchServe takes from a worker: at a larger one it ends the worker, and the
whole batch fails."""

from __future__ import annotations

import os
from pathlib import Path

from handlers import properties
from handlers.errors import LoadError, TooLarge

# Of TorchServe, where its configuration does not say.
DEFAULT = 6_553_500


def limit() -> int:
    """``max_response_size``, in bytes, of the configuration that TS_CONFIG_FILE names.

    Raises LoadError where that is no number.
    """
    file = os.environ.get("TS_CONFIG_FILE")
    if not file or not Path(file).is_file():
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
