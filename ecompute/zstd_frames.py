"""Unpacks zstd piece by piece with the system's libzstd, which QEMU's own tools bring along.

Python 3.11 has no zstd of its own. The calls used here are of the library's stable interface (``zstd.h``, 1.4 and newer). What
a call gives back is bounded by the caller, and the window of a frame by ``WINDOW_BITS``, so that no input decides how much
memory is used. The only ``ctypes`` over libzstd is here. Called by ``image_unpacking``.
"""

from __future__ import annotations

import ctypes
import functools
import weakref

WINDOW_BITS = 27  # 128 MiB: what the zstd tool itself takes without being told otherwise
_WINDOW_LOG_MAX = 100  # ZSTD_d_windowLogMax


class ZstdError(Exception):
    """The data is no zstd, or damaged, or the library is not there."""


class _Buffer(ctypes.Structure):
    """``ZSTD_inBuffer`` and ``ZSTD_outBuffer``, which are laid out alike."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("position", ctypes.c_size_t))


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libzstd.so.1")
    except OSError as error:
        raise ZstdError("libzstd is not on this host (apt-get install libzstd1)") from error
    library.ZSTD_createDCtx.restype = ctypes.c_void_p
    library.ZSTD_createDCtx.argtypes = ()
    library.ZSTD_freeDCtx.restype = ctypes.c_size_t
    library.ZSTD_freeDCtx.argtypes = (ctypes.c_void_p,)
    library.ZSTD_DCtx_setParameter.restype = ctypes.c_size_t
    library.ZSTD_DCtx_setParameter.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
    library.ZSTD_decompressStream.restype = ctypes.c_size_t
    library.ZSTD_decompressStream.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Buffer), ctypes.POINTER(_Buffer))
    library.ZSTD_isError.restype = ctypes.c_uint
    library.ZSTD_isError.argtypes = (ctypes.c_size_t,)
    library.ZSTD_getErrorName.restype = ctypes.c_char_p
    library.ZSTD_getErrorName.argtypes = (ctypes.c_size_t,)
    return library


class ZstdDecompressor:
    """One frame, with the attributes of ``lzma.LZMADecompressor``: ``eof``, ``needs_input``, ``unused_data``."""

    def __init__(self) -> None:
        self._library = _library()
        self._context = self._library.ZSTD_createDCtx()
        if not self._context:
            raise MemoryError("libzstd")
        weakref.finalize(self, self._library.ZSTD_freeDCtx, self._context)
        self._checked(self._library.ZSTD_DCtx_setParameter(self._context, _WINDOW_LOG_MAX, WINDOW_BITS))
        self._input = b""
        self.eof, self.needs_input = False, True

    @property
    def unused_data(self) -> bytes:
        return self._input if self.eof else b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """At most *max_length* more bytes of the frame.

        Raises:
            ZstdError: it is damaged, or needs more memory than it gets.
        """
        self._input += data
        output = ctypes.create_string_buffer(max_length)
        source = _Buffer(ctypes.cast(ctypes.c_char_p(self._input), ctypes.c_void_p), len(self._input), 0)
        target = _Buffer(ctypes.cast(output, ctypes.c_void_p), max_length, 0)
        left = self._checked(self._library.ZSTD_decompressStream(self._context, ctypes.byref(target), ctypes.byref(source)))
        self._input = self._input[source.position :]
        self.eof = left == 0  # the frame is over, and all of it was handed out
        self.needs_input = not self.eof and not self._input and target.position < max_length
        return output.raw[: target.position]

    def _checked(self, answer: int) -> int:
        if self._library.ZSTD_isError(answer):
            raise ZstdError(self._library.ZSTD_getErrorName(answer).decode("ascii", "replace"))
        return answer
