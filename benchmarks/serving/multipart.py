"""A multipart/form-data body, made once so that a load generator only sends bytes."""

from __future__ import annotations

from collections.abc import Sequence

_BOUNDARY = "marsmith-benchmark-8a3f0c"
CONTENT_TYPE = f"multipart/form-data; boundary={_BOUNDARY}"


def encode(field: str, files: Sequence[bytes]) -> bytes:
    """The files as parts of one field."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="a.jpg"\r\n'
    head += "Content-Type: image/jpeg\r\n\r\n"
    parts = b"".join(head.encode() + file + b"\r\n" for file in files)
    return parts + f"--{_BOUNDARY}--\r\n".encode()
