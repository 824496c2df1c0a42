"""What TorchServe loads: the manifest of every archive names this module as its handler.

TorchServe swallows the ImportError of a handler module and wants one class in it, so the task is
loaded from here, when the archive's files are proven, by an ``initialize`` that can say what is
wrong.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

# Else a worker that is started again would find bytecode that no record knows of.
sys.dont_write_bytecode = True

from handlers.errors import LoadError, one_line  # noqa: E402

logger = logging.getLogger(__name__)
# Libraries change the level of the root logger, OpenVINO to ERROR: ours must not depend on it.
logging.getLogger(__package__).setLevel(logging.INFO)


class Service:
    """Checks the archive, then hands every call to the handler of its task."""

    def initialize(self, context: Any) -> None:
        """Load the model, or refuse: one line in the log says why, TorchServe hears LoadError."""
        folder = Path(context.system_properties["model_dir"])
        try:
            self._load(folder, context)
        except LoadError as error:
            _refuse(context, error)
            raise
        # Whatever else goes wrong must become a RuntimeError: TorchServe kills a worker on others.
        except Exception as error:
            refusal = LoadError(f"{type(error).__name__}: {one_line(error, 500)}")
            _refuse(context, refusal)
            raise refusal from error

    def handle(self, rows: list[dict[str, Any]], context: Any) -> list[Any]:
        """Answer a batch; see ``TaskHandler.handle``."""
        return self._handler.handle(rows, context)

    def _load(self, folder: Path, context: Any) -> None:
        # Here, for an ImportError of numpy, say, must reach the log, and nothing but this file, the
        # errors and the check itself may run before the files are proven.
        from handlers import integrity

        integrity.verify(folder)
        from handlers import plugins
        from handlers.bundle import Bundle

        self._handler = plugins.load_task(Bundle.read(folder).task)()
        self._handler.initialize(context)


def _refuse(context: Any, error: LoadError) -> None:
    model = context.manifest["model"]
    logger.error("marsmith: refused %s %s: %s", model["modelName"], model["modelVersion"], error)
