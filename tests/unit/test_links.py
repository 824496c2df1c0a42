"""Every link of README.md, CHANGELOG.md and docs/ leads to a file of the project, and to a heading
of that page where it names one."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGES = [
    *(PROJECT / name for name in ("README.md", "CHANGELOG.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
]
# A link or a picture: `[words](target)`, or as HTML.
_LINK = re.compile(r"\]\(([^()\s]+)\)|(?:href|src)=\"([^\"]+)\"")
_ELSEWHERE = re.compile(r"[a-z]+:")


def _prose(page: Path) -> str:
    """A page without its blocks of code, in which nothing is a link or a heading."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def _targets(text: str) -> list[str]:
    plain = re.sub(r"`[^`\n]*`", "", text)
    found = [one or other for one, other in _LINK.findall(plain)]
    return [target for target in found if not _ELSEWHERE.match(target)]


def _anchors(text: str) -> set[str]:
    """What GitHub makes of the headings of a page: lower case, blanks as hyphens, without other
    signs; the second of the same words ends in -1."""
    found: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        anchors.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return anchors


def _broken(page: Path, root: Path = PROJECT) -> list[str]:
    """What a page of the project in ``root`` links to and is not there."""
    broken = []
    for target in _targets(_prose(page)):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.resolve().is_relative_to(root) or not path.exists():
            broken.append(f"{target}: no such file")
        elif anchor and anchor not in _anchors(_prose(path)):
            broken.append(f"{target}: no such heading")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_what_is_there(page: Path) -> None:
    assert _broken(page) == []


def test_links_are_found_in_every_page_that_has_some() -> None:
    count = {page.name: len(_targets(_prose(page))) for page in PAGES}
    assert sum(count.values()) > 80
    assert min(count["README.md"], count["CHANGELOG.md"], count["architecture.md"]) > 0


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text(
        "# One `--option`: it's *so*\n## Same\n### Same\n```sh\n# no heading\n```\n"
    )
    (tmp_path / "page.md").write_text(
        "[a](other.md#one---option-its-so) [b](other.md#same-1) [c](#own) [d](https://a.b/#c)\n"
        "# Own\n`[e](none.md)`\n```\n[f](none.md)\n```\n[g](none.md) ![h](none.png)\n"
        '[i](other.md#no-heading) [j](other.md#same-2) <img src="none.svg"> [k](../out.md)\n'
    )
    (tmp_path.parent / "out.md").touch()
    assert _broken(tmp_path / "page.md", tmp_path) == [
        "none.md: no such file",
        "none.png: no such file",
        "other.md#no-heading: no such heading",
        "other.md#same-2: no such heading",
        "none.svg: no such file",
        "../out.md: no such file",
    ]
