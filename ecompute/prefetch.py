"""``ecompute --prefetch``: fetches images into this host's cache before a guest needs them, then ends.

It may run beside the daemon, which finds what came at once. It needs etcd only for names, and neither libvirt nor Placement. It
removes nothing: what makes the cache too large is seen to by the daemon.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from common.config import ComputeConfig
from common.errors import Cancelled, ConfigError, EcomputeError, Transient
from common.etcd_store import EtcdStore
from common.keys import Keys
from common.model import ImageRef
from common.signals import upon_end
from common.validate import is_image_name, parse_image
from ecompute.images import ImageCache
from ecompute.prefetcher import resolved

EXIT_OK, EXIT_FAILED, EXIT_UNAVAILABLE = 0, 1, 4
_MIB = 1 << 20


def prefetch(config: ComputeConfig, items: Sequence[str]) -> int:
    """Fetch *items*, or what compute.yaml lists; the exit code: 1 where one cannot be had, 4 where one may be had later.

    Raises:
        ConfigError: there is nothing to fetch, or something is neither a name nor an address.
    """
    wanted = list(dict.fromkeys(items or config.images.prefetch))
    if not wanted:
        raise ConfigError("nothing to fetch: name images, or list them in images.prefetch of compute.yaml")
    for item in wanted:
        if not is_image_name(item):
            parse_image(item)
    stop = threading.Event()
    upon_end(stop.set)
    cache = ImageCache(config.paths.state_dir / "images", config.images, is_owner=False)
    with _resolver(config, wanted) as resolve:
        codes = [_fetch(cache, item, resolve, stop, is_pinned=item in config.images.prefetch) for item in wanted]
    return EXIT_FAILED if EXIT_FAILED in codes else max(codes)


@contextlib.contextmanager
def _resolver(config: ComputeConfig, items: Sequence[str]) -> Iterator[Callable[[str], ImageRef]]:
    """What says which image an item means; etcd is asked for names only."""
    if not any(map(is_image_name, items)):
        yield parse_image
        return
    store = EtcdStore(config.etcd)
    try:
        keys = Keys(config.etcd.prefix)
        yield lambda item: resolved(store, keys, item)
    finally:
        store.close()


def _fetch(
    cache: ImageCache, item: str, resolve: Callable[[str], ImageRef], stop: threading.Event, *, is_pinned: bool
) -> int:  # fmt: skip
    """Fetch *item* and say how that went, in one line; its exit code."""
    with _Progress(item) as progress:
        try:
            image = resolve(item)
            was_here = cache.is_ready(image)
            cached = cache.fetch(image, progress=progress.show, is_cancelled=stop.is_set)
            if is_pinned:
                cache.pin(item, cached)
        except Cancelled:
            progress.end(f"{item}: given up, as asked for")
            return EXIT_FAILED
        except EcomputeError as error:
            progress.end(f"{item}: {error}")
            return EXIT_UNAVAILABLE if isinstance(error, Transient) else EXIT_FAILED
        mib = cached.path.stat().st_blocks * 512 / _MIB
        progress.end(f"{item}: {'was here already' if was_here else 'is here'}: sha256:{cached.digest}, {mib:.1f} MiB")
        return EXIT_OK


class _Progress:
    """One line that changes, on a terminal; and a last one that stays."""

    def __init__(self, item: str) -> None:
        self._item, self._is_terminal, self._has_shown = item, sys.stderr.isatty(), False

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def show(self, done: int, total: int) -> None:
        if self._is_terminal:
            of = f" of {total / _MIB:.1f}" if total else ""
            sys.stderr.write(f"\r\033[K{self._item}: {done / _MIB:.1f}{of} MiB")
            sys.stderr.flush()
            self._has_shown = True

    def end(self, line: str) -> None:
        self._clear()
        print(line.replace("\n", " "))

    def _clear(self) -> None:
        if self._has_shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
            self._has_shown = False
