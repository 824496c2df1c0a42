from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from handlers.errors import ServerError
from marsmith.asking import Asked, Asker, find_pictures, in_order
from marsmith.client import Client, Reply
from marsmith.commands.predict import _targets


class _Client(Client):
    """A client of nothing, which counts how many there are."""

    def __init__(self, made: list[_Client]) -> None:
        made.append(self)
        self.closed = False

    def predict(self, model: str, body: Any, **_: Any) -> Reply:
        if body == b"silent":
            raise ServerError("no answer")
        status = 415 if body == b"bad" else 200
        return Reply(status, "", b'{"message": "no picture"}' if body == b"bad" else body)

    def close(self) -> None:
        self.closed = True


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "inner/c.webp", "inner/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(*given: str) -> list[str]:
        found = find_pictures([str(tmp_path / each) for each in given])
        return [str(path.relative_to(tmp_path)) for path in found]

    assert names("") == ["a.PNG", "b.jpg", "inner/c.webp"]
    assert names("inner/notes.txt", "*.jpg", "b.jpg") == ["inner/notes.txt", "b.jpg"]
    assert names("**/*.webp") == ["inner/c.webp"]
    (tmp_path / "[x].png").touch()
    assert names("[x].png") == ["[x].png"]
    assert names("none.png") == ["none.png"]
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "*.bmp"):
        with pytest.raises(ServerError, match=r"names no picture: give a file"):
            names(nothing)


def test_a_picture_that_fails_fails_alone(tmp_path: Path) -> None:
    contents = {"a": b"[1]", "b": b"bad", "c": b"silent", "d": b"<html>", "e": b"[2]"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    made: list[_Client] = []
    asker = Asker(lambda: _Client(made), "m", None)
    paths = [tmp_path / name for name in [*contents, "f"]]
    found = list(in_order(asker.ask, paths, 2))
    asker.close()
    assert [one.path for one in found] == paths
    problems = [one.problem for one in found]
    assert problems[:3] == [None, "415: no picture", "no answer"]
    assert "is not JSON" in str(problems[3])
    assert problems[4:] == [None, "cannot be read: No such file or directory"]
    assert 1 <= len(made) <= 2
    assert all(client.closed for client in made)
    assert found[0] == Asked(paths[0], Reply(200, "", b"[1]"), None)


def test_drawings_of_equal_names_do_not_replace_each_other(tmp_path: Path) -> None:
    out = tmp_path / "out"
    one, two = tmp_path / "a" / "x.jpg", tmp_path / "b" / "x.jpg"
    assert _targets(out, [one]) == {one: out / "x.jpg.png"}
    assert len(set(_targets(out, [one, two]).values())) == 2


def test_masks_beside_their_pictures_are_not_asked(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for name in ("a.jpg", "masks/a.png"):
        (tmp_path / name).touch()
    assert find_pictures([str(tmp_path)]) == [tmp_path / "a.jpg"]
