"""Which archives of a model store a start loads, and why it leaves out others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from handlers.errors import ArchiveError, ServerError
from marsmith import journal, signing
from marsmith.archive import TOKEN, Header, check_torch, file_name
from marsmith.store import newest_first, readable


@dataclass(frozen=True)
class Choice:
    """Archives of a store by file name.

    ``archives`` are loaded, in this order, with what each says it is; ``refused`` says why others
    are not, in words that begin with the file's name, and ``ended`` are those that were left by a
    rollout, a rollback or `remove`.
    """

    archives: dict[str, Header]
    refused: dict[str, str]
    ended: list[str]


def choose(home: Path, store: Path, named: Sequence[str], properties: Mapping[str, str]) -> Choice:
    """What to load of a store: the archives ``named``, or what the journal of ``home`` leaves.

    That is every version but those that the journal knows and that no longer serve, a model's
    default one first. Raises ServerError where nothing is left, ArchiveError for a named one that
    is not there.
    """
    if not store.is_dir():
        raise ServerError(f"no model store {store}: build a model first")
    headers, refused = readable(store, named)
    if not headers and not refused:
        raise ServerError(f"no archives in {store}: build a model first")
    order, ended = list(headers), []
    chosen, known = ({}, {}) if named else (journal.defaults(home), journal.serving(home))
    if not named:
        order = newest_first(headers, chosen)
        ended = [file for file in order if known.get(_pair(headers[file])) is False]
        # One that is there and cannot be read has its reason already
        refused = _missing(headers, chosen) | refused
    order = [file for file in order if file not in ended]
    refused |= _unaskable(headers, order, properties)
    order = [file for file in order if file not in refused]
    admitted, unsigned = signing.admitted(store, order, properties, home)
    refused |= unsigned
    unable = _unable(store, admitted)
    refused |= unable
    able = [file for file in admitted if file not in unable]
    # Of those alone that could be loaded: another one may be the only one that is signed.
    refused |= _twice(headers, able)
    archives = {file: headers[file] for file in able if file not in refused}
    unproven = _unproven(archives, chosen, known)
    refused |= unproven
    archives = {file: header for file, header in archives.items() if file not in unproven}
    if not archives:
        raise ServerError("no archive may be served: " + _reasons(refused, ended))
    return Choice(archives, refused, ended)


def _twice(headers: Mapping[str, Header], order: Sequence[str]) -> dict[str, str]:
    """Files that are a version which another one is: TorchServe would end at the second."""
    taken: dict[tuple[str, str], str] = {}
    # The one with the name that a build gives comes first.
    for file in sorted(order, key=lambda file: file != file_name(*_pair(headers[file]))):
        taken.setdefault(_pair(headers[file]), file)
    return {
        file: f"{file} is {' '.join(pair)}, as {taken[pair]} is: remove one of them"
        for file in order
        if taken[pair := _pair(headers[file])] != file
    }


def _unaskable(
    headers: Mapping[str, Header], order: Sequence[str], properties: Mapping[str, str]
) -> dict[str, str]:
    """Files of models that TorchServe tells nothing of while it wants tokens."""
    if properties.get("disable_token_authorization", "false").lower() == "true":
        return {}
    return {
        file: f"{file}: TorchServe takes a model whose name begins with {TOKEN!r} for its token API"
        ": build it under another name"
        for file in order
        if headers[file].name.startswith(TOKEN)
    }


def _unable(store: Path, files: Sequence[str]) -> dict[str, str]:
    """Those whose workers cannot start in this environment, and why."""
    reasons = {}
    for file in files:
        try:
            check_torch(store / file)
        except ArchiveError as error:
            reasons[file] = str(error)
    return reasons


def _pair(header: Header) -> tuple[str, str]:
    return header.name, header.version


def _unproven(
    archives: Mapping[str, Header],
    chosen: Mapping[str, str],
    known: Mapping[tuple[str, str], bool],
) -> dict[str, str]:
    """Those that the journal does not know, of models whose default version is not loaded."""
    loaded = {_pair(header) for header in archives.values()}
    lost = {model: version for model, version in chosen.items() if (model, version) not in loaded}
    return {
        file: f"{file} would be the default version in the place of {lost[one.name]}, and no"
        " rollout has proven it: name the archives to serve"
        for file, one in archives.items()
        if one.name in lost and _pair(one) not in known
    }


def _missing(headers: Mapping[str, Header], chosen: Mapping[str, str]) -> dict[str, str]:
    """Default versions that are gone from a store which has others of their models."""
    found = {_pair(one) for one in headers.values()}
    models = {one.name for one in headers.values()}
    gone = [file_name(*pair) for pair in chosen.items() if pair[0] in models and pair not in found]
    return {
        file: f"{file}, the default version by the journal, is not in the store: build it again, or"
        " name the archives to serve"
        for file in gone
    }


def _reasons(refused: Mapping[str, str], ended: Sequence[str]) -> str:
    said = list(refused.values())
    if ended:
        said.append(f"by the journal {', '.join(ended)} no longer serve: name those to serve")
    return "; ".join(said)
