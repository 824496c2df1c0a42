"""Ed25519 keys in PEM files, as openssl makes and reads them."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from handlers.errors import SignatureError

MAKE = "make a pair of keys with `marsmith keygen NAME`"


def generate(name: Path) -> tuple[Path, Path]:
    """Write ``name.key`` (private, mode 600) and ``name.pub``; both PEM, as openssl reads them."""
    made = Ed25519PrivateKey.generate()
    secret = made.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    shown = made.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    files = name.with_name(name.name + ".key"), name.with_name(name.name + ".pub")
    for file, mode, content in ((files[0], 0o600, secret), (files[1], 0o644, shown)):
        try:
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
                out.write(content)
        except OSError as error:
            if file == files[1]:
                # Alone it would be taken for that of the public key that is there.
                files[0].unlink()
            raise SignatureError(f"cannot write the key {file}: {error.strerror}") from error
    return files


def fits(key: Ed25519PublicKey, signature: bytes, record: bytes) -> bool:
    """Whether a key has made this signature of these bytes."""
    try:
        key.verify(signature, record)
    except InvalidSignature:
        return False
    return True


def private(file: Path) -> Ed25519PrivateKey:
    """The private key of a file without a passphrase; raises SignatureError."""
    try:
        key = pem.load_pem_private_key(file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{file} is no plain private key: {error}; {MAKE}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{file} is not an Ed25519 key: {MAKE}")
    return key


def public(file: Path) -> Ed25519PublicKey:
    """The public key of a file; raises SignatureError."""
    try:
        key = pem.load_pem_public_key(file.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{file} is no public key: {error}; {MAKE}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{file} is not an Ed25519 key: {MAKE}")
    return key
