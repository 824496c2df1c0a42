"""A TorchServe as the operating system sees it: its pid file, its process and its workers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from handlers.errors import ServerError
from marsmith.addresses import TOKEN_FILE, Addresses, read_properties
from marsmith.environment import others, temp_folder

PID_FILE = ".model_server.pid"
# In the temp folder: held by whoever starts or stops its server, so that neither sees half of it
START_LOCK = "start.lock"
_MAIN_CLASS = "org.pytorch.serve.ModelServer"
_FORCED_SECONDS = 5.0
# Of the machine's start
_ROUNDED_SECONDS = 1.0


@dataclass(frozen=True)
class Running:
    """A running TorchServe: pid, working folder, configuration, start (seconds since 1970)."""

    pid: int
    home: Path
    config: Path
    started: float

    @property
    def addresses(self) -> Addresses:
        """Where this server listens, by the configuration that it was started with."""
        return Addresses.of(read_properties(self.config))

    @property
    def model_store(self) -> Path:
        """The folder that this server's archives come from."""
        return self.home / read_properties(self.config).get("model_store", "model-store")


def is_alive(pid: int) -> bool:
    """Whether a process runs under this pid; one that has ended and awaits its parent does not."""
    # TorchServe says -1 of a worker that has not told its own yet.
    if pid < 0:
        return False
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def working_folder(pid: int) -> Path | None:
    """The folder that a process of this user's runs in; None where it has ended."""
    try:
        return Path(psutil.Process(pid).cwd())
    except psutil.NoSuchProcess:
        return None
    except psutil.Error as error:
        raise ServerError(f"cannot tell in which folder process {pid} runs: {error}") from error


def find_running(temp: Path) -> Running | None:
    """The TorchServe that recorded its pid in ``temp``, however it was started; None if it ended.

    A pid that meanwhile belongs to another program, or to another folder's server, counts as ended.
    """
    pid_file = temp / PID_FILE
    try:
        process = psutil.Process(int(pid_file.read_text(encoding="ascii")))
        # Counted from the start of the machine, it moves with a clock that is set back meanwhile
        own = process.create_time() + _ROUNDED_SECONDS
        started = min(pid_file.stat().st_mtime, own)
        command = process.cmdline()
        # Another folder's, too, which may have this pid since the host was started anew
        if _MAIN_CLASS not in command or f"-Djava.io.tmpdir={temp}" not in command:
            return None
        home = Path(process.cwd())
        config = command[command.index("-f") + 1] if "-f" in command else "config.properties"
        return Running(process.pid, home, home / config, started)
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None
    except (OSError, psutil.Error) as error:
        raise ServerError(f"cannot tell whether TorchServe runs ({pid_file}): {error}") from error


def require_running(home: Path) -> Running:
    """The TorchServe of the project in ``home``; raises ServerError where none runs."""
    if running := find_running(temp_folder(home)):
        return running
    raise ServerError(
        f"no TorchServe runs for {home}: start it with `marsmith serve`{others(home)}"
    )


def find_workers(temp: Path) -> list[psutil.Process]:
    """The worker processes whose sockets are in ``temp``, also those of a server that is gone."""
    socket = f"{temp}/.ts.sock."
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(part.startswith(socket) for part in process.info["cmdline"] or ())
    ]


def end_all(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Ask processes to end, wait, end the rest by force; returns when every one is gone.

    Raises ServerError where one outlives even that.
    """
    left = list(processes)
    for patience, force in ((seconds, False), (_FORCED_SECONDS, True)):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill() if force else process.terminate()
        deadline = time.monotonic() + patience
        # Not psutil.wait_procs: a zombie whose parent never looks would be waited for in vain
        while (left := [one for one in left if is_alive(one.pid)]) and time.monotonic() < deadline:
            time.sleep(0.05)
    if left:
        raise ServerError(f"processes {[one.pid for one in left]} do not end: end them by hand")


def stop_running(temp: Path, seconds: float = 20.0) -> int | None:
    """End the TorchServe recorded in ``temp`` and all its workers; its pid, None where none ran.

    Requests over REST that are under way are lost: TorchServe does not drain (``marsmith.drain``
    does). ``seconds`` pass before force is used.
    """
    running = find_running(temp)
    if running:
        end_all([psutil.Process(running.pid)], seconds)
        (running.home / TOKEN_FILE).unlink(missing_ok=True)
    end_all(find_workers(temp), _FORCED_SECONDS)
    (temp / PID_FILE).unlink(missing_ok=True)
    return running.pid if running else None
