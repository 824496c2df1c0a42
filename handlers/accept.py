"""Which media type an answer has (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from handlers.errors import NotAcceptable

ACCEPT = "accept"
JSON = "application/json"
OFFERED = (JSON, "image/png", "image/jpeg")


def negotiate(accept: str | None) -> str:
    """The offered type with the highest quality; JSON where nothing is asked or all are equal."""
    if not accept or not accept.strip(" ,"):
        return JSON
    best, best_quality = "", 0.0
    ranges = [_parse(part) for part in accept.split(",") if part.strip()]
    for offered in OFFERED:
        quality = _quality(offered, ranges)
        if quality > best_quality:
            best, best_quality = offered, quality
    if not best:
        asked = " ".join(accept[:100].split())
        raise NotAcceptable(
            f"Accept: {asked} cannot be answered: offered are {', '.join(OFFERED)}",
            accepted=list(OFFERED),
        )
    return best


def _quality(offered: str, ranges: list[tuple[str, float]]) -> float:
    """Quality of the most specific range that covers ``offered``; 0 when none does."""
    kind = offered.split("/")[0]
    for pattern in (offered, f"{kind}/*", "*/*"):
        for name, quality in ranges:
            if name == pattern:
                return quality
    return 0.0


def _parse(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    name = {"*": "*/*", "image/jpg": "image/jpeg"}.get(name, name)
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return name, min(max(float(parameter[2:]), 0.0), 1.0)
            except ValueError:
                return name, 0.0
    return name, 1.0
