"""Thousands of malformed requests to a real TorchServe: nobody dies, no neighbour fails."""

from __future__ import annotations

import malformed
import malformed_requests
import pytest
from flood import Neighbour, flood

from marsmith.server import TorchServe

pytestmark = pytest.mark.usefixtures("survivor")

# What TorchServe itself says, with 500, of forms that it cannot read.
UNREAD = ("ErrorDataDecoderException", "ArrayIndexOutOfBoundsException")


def test_malformed_pictures(one_worker: TorchServe, neighbour: Neighbour) -> None:
    cases = [*malformed.truncated(), *malformed.damaged(3500), *malformed.polyglots()]
    seen = flood(one_worker.running, cases, neighbour)
    seen.assert_clean(len(cases))
    assert len(cases) > 5000
    assert seen.neighbours > len(cases) / 5
    # Most mutations must have broken something
    assert seen.statuses[422] > len(cases) / 3


def test_malformed_documents_and_headers(one_worker: TorchServe, neighbour: Neighbour) -> None:
    picture = malformed.originals()["png"]
    documents = malformed_requests.documents(picture, 400)
    cases = [*documents, *malformed_requests.headers(picture)]
    seen = flood(one_worker.running, cases, neighbour)
    seen.assert_clean(len(cases))
    assert seen.statuses[400] > len(cases) / 3


def test_malformed_forms(one_worker: TorchServe, neighbour: Neighbour) -> None:
    """TorchServe answers some of them with 500 before any worker sees them: docs/security.md."""
    cases = list(malformed_requests.fields(malformed.originals()["png"], 150))
    seen = flood(one_worker.running, cases, neighbour)
    theirs = [one for one in seen.problems if any(f'"{kind}"' in one for kind in UNREAD)]
    seen.problems = [one for one in seen.problems if one not in theirs]
    seen.assert_clean(len(cases))
    assert len(theirs) == seen.statuses[500] < len(cases) / 2
