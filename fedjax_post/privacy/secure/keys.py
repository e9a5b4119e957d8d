"""Key agreement, encryption, signatures and key streams, from the package `cryptography`.

X25519 (RFC 7748) with HKDF-SHA256 for keys of pairs, ChaCha20-Poly1305 (RFC 8439) for what one
client sends another through the server, Ed25519 (RFC 8032) for signatures, and the key stream of
ChaCha20 for masks. A key serves one purpose, of one round and one direction, so that nonces are
zero. The package comes with the extra `[secure]`.
"""

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np

KEY_BYTES = 32


def derive(secret: bytes, purpose: bytes) -> bytes:
    """Returns a key of 32 bytes for one purpose, by HKDF-SHA256."""
    library = _library()
    return library.hkdf.HKDF(library.hashes.SHA256(), KEY_BYTES, None, purpose).derive(secret)


def public_of(private: bytes) -> bytes:
    """Returns the public key of a private one; both have 32 bytes."""
    raw = _library().serialization
    return _private(private).public_key().public_bytes(raw.Encoding.Raw, raw.PublicFormat.Raw)


def agree(private: bytes, public: bytes, purpose: bytes) -> bytes:
    """Returns the key that two clients share: each needs its private and the other's public key.

    Raises:
      ValueError: for a public key of small order, with which everybody would know the key.
    """
    other = _library().x25519.X25519PublicKey.from_public_bytes(public)
    return derive(_private(private).exchange(other), purpose)


def seal(key: bytes, text: bytes, context: bytes) -> bytes:
    """Returns the encrypted text with a tag of 16 bytes; a key seals once."""
    return _library().aead.ChaCha20Poly1305(key).encrypt(bytes(12), text, context)


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes:
    """Returns the text.

    Raises:
      ValueError: if it was changed, or sealed with another key or context.
    """
    library = _library()
    try:
        return library.aead.ChaCha20Poly1305(key).decrypt(bytes(12), sealed, context)
    except library.InvalidTag:
        raise ValueError("a sealed message was changed, or is for somebody else") from None


def identity_of(signing: bytes) -> bytes:
    """Returns the public key of a private signing key; both have 32 bytes."""
    raw = _library().serialization
    public = _library().ed25519.Ed25519PrivateKey.from_private_bytes(signing).public_key()
    return public.public_bytes(raw.Encoding.Raw, raw.PublicFormat.Raw)


def sign(signing: bytes, text: bytes) -> bytes:
    """Returns a signature of 64 bytes."""
    return _library().ed25519.Ed25519PrivateKey.from_private_bytes(signing).sign(text)


def is_signed(identity: bytes, signature: bytes, text: bytes) -> bool:
    """Returns whether the owner of a public signing key signed a text."""
    library = _library()
    try:
        library.ed25519.Ed25519PublicKey.from_public_bytes(identity).verify(signature, text)
    except library.InvalidSignature:
        return False
    return True


def stream(key: bytes, size: int) -> np.ndarray:
    """Returns the key stream as numbers, `[size]` uint32."""
    return np.frombuffer(stream_bytes(key, 4 * size), "<u4").astype(np.uint32)


def stream_bytes(key: bytes, size: int) -> bytes:
    """Returns the first bytes of the key stream of ChaCha20."""
    library = _library()
    cipher = library.ciphers.Cipher(library.algorithms.ChaCha20(key, bytes(16)), mode=None)
    return cipher.encryptor().update(bytes(size))


def _private(private: bytes) -> Any:
    return _library().x25519.X25519PrivateKey.from_private_bytes(private)


@functools.cache
def _library() -> Any:
    """Returns the modules of `cryptography` that are used here, as one namespace."""
    try:
        from cryptography.exceptions import InvalidSignature, InvalidTag
        from cryptography.hazmat.primitives import ciphers, hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
        from cryptography.hazmat.primitives.ciphers import aead, algorithms
        from cryptography.hazmat.primitives.kdf import hkdf
    except ImportError as error:
        raise ImportError(
            "the protocol of secure sums needs the package cryptography; install the extra: "
            "pip install 'fedjax_post[secure]'"
        ) from error
    return SimpleNamespace(
        InvalidSignature=InvalidSignature,
        InvalidTag=InvalidTag,
        aead=aead,
        algorithms=algorithms,
        ciphers=ciphers,
        ed25519=ed25519,
        hashes=hashes,
        hkdf=hkdf,
        serialization=serialization,
        x25519=x25519,
    )
