"""Rollouts and rollbacks as a whole: the steps, the journal, and the end of the old version."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from handlers import integrity
from handlers.errors import MarsmithError, ServerError, SignatureError
from marsmith import journal
from marsmith.archive import Header, file_name, read_header, read_json
from marsmith.client import Client, ModelApiOff
from marsmith.drain import remove_version
from marsmith.grpc_client import GrpcClient
from marsmith.journal import Entry
from marsmith.managing import GrpcManaged
from marsmith.processes import Running
from marsmith.rollout import Change, Options
from marsmith.status import (
    VersionStatus,
    find_default,
    find_version,
    read_status,
    unpacked,
    unregistered,
)
from marsmith.steps import RolledBack, Say, Step, carry_out, heedless
from marsmith.store import admit, locate, name_in


def roll_out(running: Running, archive: Path, options: Options, keep: bool, say: Say) -> None:
    """Make an archive's version the default one of its model; raises RolledBack or ServerError.

    ``keep``: the version before stays registered, for requests that name it and for going back.
    """
    archive = locate(archive, store=running.model_store)
    new = read_header(archive)
    with journal.exclusive(running.home), _clients(running, options.grpc) as clients:
        found = read_status(running, clients.rest)
        old = find_default(found, new.name)
        if old and old.version == new.version:
            raise ServerError(
                f"{new.name} {new.version} is the default version already: build the new one with"
                " a --version of its own"
            )
        if options.pictures and not old:
            heedless(say)(f"nothing to compare with: no version of {new.name} is registered")
        name = name_in(running.model_store, archive)
        change = Change(running, clients.both, name, new, old, options)
        steps = [_admission(archive, running.model_store)]
        if beside := find_version(found, new.name, new.version):
            steps.append(_removal(running, clients.rest, beside, options))
        _carry_out(running, change, [*steps, *change.steps()], journal.ROLLOUT, keep, say)


def roll_back(running: Running, model: str, options: Options, keep: bool, say: Say) -> None:
    """Make the version before the default one again, by the journal; raises as ``roll_out``."""
    with journal.exclusive(running.home), _clients(running, options.grpc) as clients:
        found = read_status(running, clients.rest)
        old = find_default(found, model)
        if old is None:
            raise ServerError(unregistered(clients.rest, model))
        entry = journal.before(running.home, model, old.version)
        target = find_version(found, model, entry.after)
        name = target.archive if target else _kept_archive(running, model, entry)
        new = Header(model, entry.after)
        change = Change(running, clients.both, name, new, old, options)
        steps = change.steps(registered=target is not None)
        _carry_out(running, change, steps, journal.ROLLBACK, keep, say)


def end_version(
    running: Running, model: str, version: str, seconds: float, over_grpc: bool = False
) -> str:
    """Drain and unregister a version that is not the default one; raises ServerError."""
    with journal.exclusive(running.home), _clients(running, over_grpc) as clients:
        every = read_status(running, clients.rest)
        status = find_version(every, model, version)
        if status is None and not journal.serving(running.home).get((model, version)):
            raise ServerError(unregistered(clients.rest, model, version))
        if status and status.default:
            raise ServerError(f"{model} {version} is the default version: roll out another first")
        default = next((one.version for one in every if one.model == model and one.default), "")
        entry = Entry(journal.REMOVE, model, version, "", journal.DONE, default=default)
        if status is None:
            # Its removal was broken off before it was written down
            journal.append(running.home, entry)
            return f"{model} {version} was not registered any more; that is written down now"
        told = remove_version(clients.rest, model, version, seconds)
        journal.append(running.home, replace(entry, archive=status.archive))
        return told


class _clients:
    """A REST and a gRPC client, closed together; ``over_grpc``: the first manages over gRPC."""

    def __init__(self, running: Running, over_grpc: bool) -> None:
        self.rest: Client = (GrpcManaged if over_grpc else Client).of(running)
        self.grpc = GrpcClient.of(running)
        self.both = (self.rest, self.grpc)

    def __enter__(self) -> _clients:
        return self

    def __exit__(self, *exc: object) -> None:
        self.rest.close()
        self.grpc.close()


def _carry_out(
    running: Running, change: Change, steps: list[Step], operation: str, keep: bool, say: Say
) -> None:
    old: VersionStatus | None = change.old
    entry = Entry(
        operation, change.model, old.version if old else "", change.version, journal.STARTED
    )
    if old:
        entry = replace(entry, **_kept(running.model_store, old.archive))
    journal.append(running.home, entry)
    try:
        carry_out(steps, say)
    except RolledBack as error:
        # Not even tried: it may be served at another start, or signed.
        untried = isinstance(error.__cause__, (SignatureError, ModelApiOff))
        result = journal.REFUSED if untried else journal.ROLLED_BACK
        unwritten = _note(running, entry, result, reason=str(error))
        raise RolledBack(f"{error}{unwritten}") from error.__cause__
    entry = replace(entry, archive=change.archive)
    result = journal.KEPT if old else journal.DONE
    try:
        entry = replace(entry, sha256=integrity.sha256(running.model_store / change.archive))
        if old and not keep:
            heedless(say)(f"drain and remove {old.version} ...")
            change.remove_old()
            result = journal.DONE
    except (MarsmithError, OSError, KeyboardInterrupt, SystemExit) as error:
        reason = str(error) if isinstance(error, Exception) else "it was interrupted"
        unwritten = _note(running, entry, result, reason)
        left = (
            f", but {old.version} stays registered: {reason}; end it with `marsmith remove"
            f" {change.model} {old.version}`"
            if old and not keep
            else f", but its archive's sha256 is not in the journal: {reason}"
        )
        raise ServerError(
            f"{change.model} {change.version} is the default version now{left}{unwritten}"
        ) from error
    try:
        unwritten = _note(running, entry, result)
    except (KeyboardInterrupt, SystemExit):
        # All is done: a signal must not leave it as only begun
        unwritten = _note(running, entry, result)
    if unwritten:
        raise ServerError(f"{change.model} {change.version} is the default version now{unwritten}")


def _kept(store: Path, archive: str) -> dict[str, str]:
    """What an entry says of the archive of the version before; nothing where it is not there."""
    if not archive or not (store / archive).is_file():
        return {}
    return {"before_archive": archive, "before_sha256": integrity.sha256(store / archive)}


def _note(running: Running, entry: Entry, result: str, reason: str = "") -> str:
    """Write how it went; where that fails, what to say after it: the outcome comes first."""
    fresh = replace(entry, result=result, reason=reason, time=journal.now())
    try:
        journal.append(running.home, fresh)
    except ServerError as error:
        return f"; {error}: `marsmith serve` will not know of it"
    return ""


def _admission(archive: Path, store: Path) -> Step:
    added: list[Path] = []

    def do() -> str:
        target = store / name_in(store, archive)
        if admit(archive, store):
            added.append(target)
        return f"every file as recorded, {'copied to' if added else 'in'} {target}"

    def undo() -> str:
        for target in added:
            try:
                target.unlink(missing_ok=True)
            except OSError as error:
                raise ServerError(f"cannot remove {target}: {error.strerror}") from error
        return f"{added[0]} removed" if added else ""

    return Step(f"verify {archive.name}", do, undo)


def _removal(running: Running, client: Client, beside: VersionStatus, options: Options) -> Step:
    """A version that is registered but not the default one may come from other bytes.

    Where it does, or that is not known, it does not come back: those of the store have failed.
    """
    model, version = beside.model, beside.version
    same = _is_loaded(running.model_store / beside.archive, beside)

    def undo() -> str:
        if find_version(read_status(running, client), model, version):
            return ""
        if not same:
            raise ServerError(
                f"{beside.archive} of the store is not what served as {version}, which is gone"
            )
        return client.register(beside.archive, timeout=options.load)

    return Step(
        f"remove the {version} that is registered beside the default version",
        lambda: remove_version(client, model, version, options.drain),
        undo,
    )


def _is_loaded(archive: Path, status: VersionStatus) -> bool:
    """Whether a version was loaded from these bytes; False also where nobody can tell."""
    try:
        loaded = json.loads((unpacked(status) / integrity.RECORD).read_bytes())
        return bool(loaded == read_json(archive, integrity.RECORD))
    except (MarsmithError, OSError, ValueError):
        return False


def _kept_archive(running: Running, model: str, entry: Entry) -> str:
    name = entry.archive or file_name(model, entry.after)
    path = running.model_store / name
    if not path.is_file():
        raise ServerError(f"{path} is gone: build it again, and `marsmith rollout` it")
    if entry.sha256 and integrity.sha256(path) != entry.sha256:
        raise ServerError(f"{path} is not the archive that was served as {entry.after}")
    return name
