"""One picture's step that fails alone: its neighbours in the batch must not feel it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from handlers.errors import InferenceError, RequestError
from handlers.plugins import described

T = TypeVar("T")


def guarded(step: Callable[..., T], *arguments: object) -> T | RequestError:
    """What a step of one picture gives, or its error."""
    try:
        return step(*arguments)
    # A task's own step may fail in ways of its own.
    except Exception as error:  # noqa: BLE001
        return failure(error, "this model could not answer")


def failure(error: Exception, what: str) -> RequestError:
    """``error`` as a client is told of it: what failed, and not more of the server's affairs."""
    if isinstance(error, RequestError):
        return error
    failed = InferenceError(f"{what}: {type(error).__name__}")
    failed.__cause__ = error
    return failed


def explained(error: RequestError) -> RequestError:
    """The same error with its cause, which is no client's business."""
    cause = error.__cause__
    if not isinstance(error, InferenceError) or cause is None:
        return error
    what = str(error).partition(":")[0]
    told = InferenceError(f"{what}: {described(cause)}")
    told.__cause__ = cause
    return told
