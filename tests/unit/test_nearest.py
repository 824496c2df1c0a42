from __future__ import annotations

import pytest

from handlers.nearest import hint

KNOWN = ["lenet5_digits", "resnet18", "resnet34", "ssdlite_shapes"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lenet", "did you mean lenet5_digits?"),
        ("ResNet34", "did you mean resnet34?"),
        ("ssdlite_shape", "did you mean ssdlite_shapes?"),
        ("qqqq", "known are lenet5_digits, resnet18, resnet34, ssdlite_shapes"),
        ("", "known are lenet5_digits, resnet18, resnet34, ssdlite_shapes"),
    ],
)
def test_names_that_begin_alike_or_are_alike(name: str, words: str) -> None:
    assert hint(name, KNOWN) == words


def test_where_nothing_is_near_only_what_is_to_be_listed_is() -> None:
    assert hint("qqqq", KNOWN, KNOWN[:1]) == "known are lenet5_digits"
    assert hint("m", []) == "none are known"
