"""Computes checksums of 32 bits, of every SPAN bytes of a file: crc32c where it is installed, else zlib's crc32."""

import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

SPAN = 1 << 25
Update = Callable[[Any, int], int]  # (bytes, the checksum of what came before) -> the checksum of both


@cache
def update(algorithm: str) -> Update:
    """Return the function of a checksum's name. Raises ValueError where there is none, ImportError with what to
    install."""
    if algorithm == "crc32":
        return zlib.crc32
    if algorithm != "crc32c":
        raise ValueError(f"the checksum's algorithm is {algorithm!r}, expected 'crc32c' or 'crc32'")
    try:
        from crc32c import crc32c
    except ImportError:
        try:
            from google_crc32c import extend
        except ImportError:
            raise ImportError(
                "the checkpoint's checksums are crc32c: pip install fastadam[checkpoint], or crc32c, or google-crc32c"
            ) from None
        return lambda data, before: int(extend(before, bytes(data)))  # it takes no other buffer
    return lambda data, before: int(crc32c(data, before))


@cache
def best() -> str:
    """Return the name of the fastest algorithm that is installed."""
    try:
        update("crc32c")
    except ImportError:
        return "crc32"
    return "crc32c"
