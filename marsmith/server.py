"""Start, watch and stop one real TorchServe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from handlers.errors import ServerError
from marsmith import environment
from marsmith.addresses import (
    TOKEN_FILE,
    bind_problem,
    hosts,
    join,
    read_properties,
    write_properties,
)
from marsmith.archive import Header
from marsmith.choosing import choose
from marsmith.client import Client, Refused
from marsmith.locks import alone, kept
from marsmith.processes import (
    PID_FILE,
    START_LOCK,
    Running,
    end_all,
    find_running,
    find_workers,
    stop_running,
)
from marsmith.status import VersionStatus, read_status

_CONSOLE = "console.log"
# ``python -m ts.model_server`` with a locked folder as the standard input, which nobody reads: the
# launcher hands on no other descriptor to Java, and Python itself does not start on a folder.
_LAUNCH = (
    "import os, runpy, sys; os.dup2(int(sys.argv.pop(1)), 0);"
    "runpy.run_module('ts.model_server', run_name='__main__')"
)
_LAUNCH_SECONDS = 30.0
_LEFTOVER_SECONDS = 5.0
# The rest of a stack, and what Java says of its options.
_NO_TROUBLE = ("at ", "NOTE: Picked up")
_TROUBLE = ("ERROR", "WARN", "Error", "Exception", "Invalid", "not found", "Caused by")


class TorchServe:
    """One TorchServe with ``home`` as its working folder, where its logs and tokens lie.

    ``config`` overrides settings of ``config_file`` (by default ``home/config.properties``) in a
    private copy; None takes one away. ``archives`` are files of the model store in the order of
    loading, by default what ``choosing.choose`` takes: ``refused`` says why others are left out, by
    file name, and ``ended`` are those whose time is over. As a context manager it starts on entry,
    unless it has, and always stops on exit.
    """

    def __init__(
        self,
        home: Path,
        *,
        model_store: Path | None = None,
        archives: Sequence[str] = (),
        config: Mapping[str, str | None] | None = None,
        config_file: Path | None = None,
    ) -> None:
        self.home = home.resolve()
        self.temp = environment.temp_folder(self.home)
        source = config_file or self.home / environment.CONFIG_NAME
        said = {**read_properties(source), **(config or {})}
        self.properties = {key: value for key, value in said.items() if value is not None}
        store = model_store or self.home / self.properties.get("model_store", "model-store")
        self.model_store = store.resolve()
        self.properties["model_store"] = str(self.model_store)
        self.archives = archives
        self.refused: dict[str, str] = {}
        self.ended: list[str] = []
        self._expected: dict[str, Header] = {}
        self._ours = False
        self._pid: int | None = None
        self._silence = ""

    def __enter__(self) -> TorchServe:
        try:
            if not self._ours:
                self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def running(self) -> Running:
        """The process that was started; raises ServerError with its last words if it ended."""
        found = find_running(self.temp)
        if found and self._pid in (None, found.pid):
            return found
        raise ServerError(f"TorchServe has ended: {self.last_lines()}")

    @property
    def was_stopped(self) -> bool:
        """Whether somebody has stopped what was started, and it did not end by itself."""
        if self._pid is None:
            return False
        with alone(self.temp / START_LOCK):
            if found := find_running(self.temp):
                return self._pid != found.pid
            # Removed by `marsmith stop` before it frees the lock, and by `torchserve --stop`
            return not (self.temp / PID_FILE).exists()

    def client(self, timeout: float = 30.0) -> Client:
        """A client with this run's tokens; ``timeout`` in seconds for every call."""
        return Client.of(self.running, timeout=timeout)

    def start(self) -> None:
        """Start TorchServe and return when its REST interface answers, in about a second.

        The models load after that: see ``wait_ready``. Raises ServerError with the log's end.
        """
        # Until the front end's pid is written: another start would end this one's workers.
        with alone(self.temp / START_LOCK):
            self._start()
        self._wait(self._answers, _LAUNCH_SECONDS, "does not answer")
        self._silence = ""

    def _start(self) -> None:
        if running := find_running(self.temp):
            raise ServerError(
                f"a TorchServe with {running.home} as its folder runs already (pid {running.pid}):"
                " stop it first with `marsmith stop`"
            )
        # It may name nothing: the launcher does not bear that
        (self.temp / PID_FILE).unlink(missing_ok=True)
        self._check_ports()
        choice = choose(self.home, self.model_store, self.archives, self.properties)
        self._expected, self.refused, self.ended = choice.archives, choice.refused, choice.ended
        # A worker that hangs outlives its server, and would keep memory and cores from new ones
        end_all(find_workers(self.temp), _LEFTOVER_SECONDS)
        # Left by a server that was killed: they would pile up, and old tokens be taken for new ones
        shutil.rmtree(self.temp / "models", ignore_errors=True)
        (self.home / TOKEN_FILE).unlink(missing_ok=True)
        copy = self.temp / environment.CONFIG_NAME
        write_properties(copy, self.properties)
        changes = environment.variables(self.home, copy)
        kept = {name: value for name, value in os.environ.items() if name not in changes}
        wanted = {name: value for name, value in changes.items() if value is not None}
        self._ours = True
        self._launch(list(self._expected), {**kept, **wanted})

    def _check_ports(self) -> None:
        """Raise ServerError where somebody else listens where this server is to."""
        taken = [
            f"{name} {join(host, port)} ({problem})"
            for name, (host, port, _) in hosts(self.properties).items()
            if (problem := bind_problem(host, port))
        ]
        if taken:
            raise ServerError(
                f"not free: {', '.join(taken)}: end what listens there, name other ports in "
                "config.properties, or take `marsmith serve --free-ports`"
            )

    def wait_ready(self, timeout: float = 120.0) -> list[VersionStatus]:
        """Wait until each version has all its workers or has failed to load; their statuses.

        Archives that TorchServe did not take are ``refused``. Raises ServerError where all of them
        are, this takes more than ``timeout`` seconds, or TorchServe ends.
        """
        found: list[VersionStatus] = []

        def settled() -> bool:
            running = self.running
            try:
                with Client.of(running) as client:
                    found[:] = read_status(running, client)
                self._silence = ""
            except Refused:
                raise
            except ServerError as error:
                # It may be about to end, as where another port of its is taken
                self._silence = str(error)
                return False
            return all(status.ready or status.failed for status in found)

        self._wait(settled, timeout, "has models that neither load nor fail")
        taken = {(one.model, one.version) for one in found}
        for file, header in self._expected.items():
            if (header.name, header.version) not in taken:
                self.refused[file] = f"{file}: TorchServe did not take it: {self.last_lines()}"
        if not found:
            raise ServerError(f"TorchServe took no archive: {self.last_lines()}")
        return found

    def stop(self) -> None:
        """End what ``start`` started, TorchServe and all its workers, and wait until they are gone.

        Requests under way are lost: see ``marsmith.drain``.
        """
        if self._ours:
            with alone(self.temp / START_LOCK):
                found = find_running(self.temp)
                # Somebody may have stopped ours and started another one
                if found is None or self._pid in (None, found.pid):
                    stop_running(self.temp)
            self._ours = False

    def leave_running(self) -> None:
        """Let it run on when this object goes; ``marsmith stop`` ends it."""
        self._ours = False

    def last_lines(self, count: int = 4) -> str:
        """The latest lines of this run's output that tell of trouble, or else its latest ones."""
        try:
            text = (self.home / "logs" / _CONSOLE).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return f"no output ({error})"
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith(_NO_TROUBLE)]
        trouble = [line for line in lines if any(word in line for word in _TROUBLE)]
        return " | ".join((trouble or lines)[-count:]) or "it printed nothing"

    def _launch(self, archives: Sequence[str], environ: Mapping[str, str]) -> None:
        options = ["--start", "--ncs", "--models", *archives]
        logs = self.home / "logs"
        logs.mkdir(exist_ok=True)
        (logs / _CONSOLE).write_bytes(b"")
        # To its end, wherever that is: whoever empties the file while it serves gets its room
        with (logs / _CONSOLE).open("ab") as console, kept(self.temp) as temp:
            try:
                # In a session of its own, so that Ctrl-C reaches only us and we end it in order
                ended = subprocess.run(
                    [sys.executable, "-c", _LAUNCH, str(temp), *options],
                    cwd=self.home,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[temp],
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    timeout=_LAUNCH_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise ServerError(
                    f"TorchServe's launcher takes more than {_LAUNCH_SECONDS:g} s: "
                    f"{self.last_lines()}"
                ) from error
        if ended.returncode:
            raise ServerError(f"TorchServe's launcher failed: {self.last_lines()}")
        found = find_running(self.temp)
        self._pid = found.pid if found else None

    def _answers(self) -> bool:
        running = self.running
        try:
            with Client.of(running, timeout=5) as client:
                return client.ping()
        except ServerError as error:
            # Until it listens; or for ever, such as where its certificate is not trusted
            self._silence = str(error)
            return False

    def _wait(self, done: Callable[[], bool], seconds: float, problem: str) -> None:
        deadline = time.monotonic() + seconds
        while self.running and not done():
            if time.monotonic() > deadline:
                last = f" ({self._silence})" if self._silence else ""
                raise ServerError(
                    f"TorchServe {problem} within {seconds:g} s{last}: {self.last_lines()}"
                )
            time.sleep(0.2)
