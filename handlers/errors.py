"""The errors that marsmith raises on purpose, in one tree.

    MarsmithError (RuntimeError: TorchServe kills a worker on anything else raised while loading)
    |-- RequestError                 one request fails alone with its own status
    |   |-- BadRequest           400 options, JSON, base64 or fields are not as described
    |   |-- NotAcceptable        406 no offered media type fits the Accept header
    |   |-- TooLarge             413 more pixels or pictures than this model accepts
    |   |-- UnsupportedPicture   415 not a picture of a supported format
    |   |-- BrokenPicture        422 a picture of a supported format that cannot be read
    |   `-- InferenceError       500 the model itself failed on this picture
    |-- LoadError                    a worker refuses to load
    |   |-- IntegrityError           a file of the archive is not the one that was built
    |   |-- GoldenError              this host does not compute what the build host did
    |   |-- RuntimeUnavailable       a package or a device that the archive needs is missing
    |   `-- PluginError              no such task or runtime, or one that breaks its contract
    |-- BuildError                   no archive is built, the model store stays as it was
    |   |-- SpecError                a model file or a command line option is wrong
    |   |-- WeightsError             weights are missing, damaged or do not fit the network
    |   |-- ExportError              a runtime cannot export this model
    |   |-- ParityError              the artifact does not answer like the eager model
    |   |   `-- LimitError           it does, and is further off than its limits allow
    |   |-- AccuracyError            the artifact loses more of the metric than is allowed
    |   |-- ArchiveError             the archive cannot be written or read
    |   `-- SmokeError               TorchServe's own loader does not accept the archive
    |-- SignatureError               an archive is not signed by a key that is trusted
    `-- ServerError                  TorchServe does not start, answer or stop as asked

Kinds of ServerError that somebody tells apart lie where they are raised: Refused and ModelApiOff in
``marsmith.client``, QueueFull and InVain in ``marsmith.drain``, RolledBack in ``marsmith.steps``.

Messages are one line and say what came, what is accepted and what to do. Errors of other
libraries are chained with ``from``.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar


class MarsmithError(RuntimeError):
    """Root of the tree; ``str()`` is one line for a person."""


class RequestError(MarsmithError):
    """One request of a batch cannot be answered; its neighbours are.

    ``details`` are JSON values that a program can act on, such as the accepted options.
    """

    status: ClassVar[int]
    phrase: ClassVar[str]

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details

    def body(self) -> bytes:
        """The JSON body: code, type and message as in TorchServe's own errors, and the details.

        The status is repeated in the body because TorchServe's gRPC drops it.
        """
        fields = {"code": self.status, "type": type(self).__name__, "message": str(self)}
        return json.dumps({**fields, **self.details}, separators=(",", ":")).encode()


class BadRequest(RequestError):
    status, phrase = 400, "Bad Request"


class NotAcceptable(RequestError):
    status, phrase = 406, "Not Acceptable"


class TooLarge(RequestError):
    status, phrase = 413, "Payload Too Large"


class UnsupportedPicture(RequestError):
    status, phrase = 415, "Unsupported Media Type"


class BrokenPicture(RequestError):
    status, phrase = 422, "Unprocessable Entity"


class InferenceError(RequestError):
    status, phrase = 500, "Internal Server Error"


class LoadError(MarsmithError):
    """A worker refuses to load; the message says what to do."""


class IntegrityError(LoadError):
    """A file of the archive is missing, added or changed."""


class GoldenError(LoadError):
    """The golden requests are not answered as on the build host."""


class RuntimeUnavailable(LoadError):
    """A package or device that the archive needs is not on this host."""


class PluginError(LoadError):
    """A task or runtime does not exist or breaks its contract."""


class BuildError(MarsmithError):
    """A build stops; the model store is as it was."""


class SpecError(BuildError):
    """A model file or a command line option is wrong."""


class WeightsError(BuildError):
    """Weights are missing, damaged or do not fit the network."""


class ExportError(BuildError):
    """A runtime cannot export this model."""


class ParityError(BuildError):
    """The artifact does not answer like the eager model."""


class LimitError(ParityError):
    """It answers as the eager model does, and further off than its limits allow."""


class AccuracyError(BuildError):
    """The artifact loses more of the metric than is allowed."""


class ArchiveError(BuildError):
    """An archive cannot be written or read."""


class SmokeError(BuildError):
    """TorchServe's own loader does not accept the archive."""


class SignatureError(MarsmithError):
    """An archive is not signed by a key that is trusted, or a key cannot be read."""


class ServerError(MarsmithError):
    """TorchServe does not start, answer or stop as asked."""


def one_line(error: BaseException, most: int | None = 300) -> str:
    """The words of another library's error on one line, at most ``most`` characters of them; None:
    all."""
    return " ".join(str(error).split())[:most]
