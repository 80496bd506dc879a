"""The WSGI application that several processes serve: Placement, where one request at a time may write. Reads run side by side.

Why: where two requests write at once, openstack-placement 16 loses count, on PostgreSQL and MariaDB alike (seen with 16 clients
that claimed on one host: 42 of 40 places given).

- It tries a claim that met another one again within the same transaction, and there takes its own first try for use that was
  there before: a full host then takes one more ("the situation is no worse than it was").
- Of two requests for one new consumer the loser may delete the consumer that the winner's claim hangs on: nobody sees that
  claim any more, and nobody can give it back.

With one writer neither can happen, and writes are no slower: at 8 clients two processes did 81 claims a second, one client
alone does 87. The lock is a file that all processes have open; a process that dies holds nothing. Several *servers* on one
database do not share it: run one.
"""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from placement.wsgi.api import application as placement

LOCK_FILE = Path(os.environ["OS_PLACEMENT_CONFIG_DIR"], "writer.lock")
READS = ("GET", "HEAD", "OPTIONS")


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Placement's answer; a request that writes waits for those before it."""
    if environ["REQUEST_METHOD"] in READS:
        return placement(environ, start_response)
    # All of it, before the lock: a client that sends slowly must not keep others waiting.
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or -1))  # gunicorn ends it where the request ends
    environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    # Opened each time: threads of one process that share a descriptor share its lock as well.
    with LOCK_FILE.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return placement(environ, start_response)  # with its body: nothing of it is made later
