"""Packs data with zstd, which Python 3.11 cannot: by the system's library."""

from __future__ import annotations

import ctypes


def zstd(data: bytes) -> bytes:
    """*data* as one frame of zstd, with its checksum not in it."""
    library = ctypes.CDLL("libzstd.so.1")
    for name in ("ZSTD_compressBound", "ZSTD_compress"):
        getattr(library, name).restype = ctypes.c_size_t
    size = library.ZSTD_compressBound(ctypes.c_size_t(len(data)))
    target = ctypes.create_string_buffer(size)
    length = library.ZSTD_compress(target, ctypes.c_size_t(size), data, ctypes.c_size_t(len(data)), 3)
    assert not library.ZSTD_isError(ctypes.c_size_t(length))
    return target.raw[:length]
