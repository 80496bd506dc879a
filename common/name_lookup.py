"""Whether a host name has an address, asked with a bound: a resolver without an answer takes half a minute to say so."""

from __future__ import annotations

import socket
import threading

LOOKUP_SECONDS = 3.0


def unresolved(name: str, seconds: float = LOOKUP_SECONDS) -> str:
    """Why there is no address of *name* to be had within so many *seconds*; "" where there is one."""
    said = [f"no answer of the resolver within {seconds:g} s"]

    def ask() -> None:
        try:
            socket.getaddrinfo(name, None)
            said[0] = ""
        except (OSError, UnicodeError) as error:
            said[0] = str(error)

    thread = threading.Thread(target=ask, name=f"look up {name}", daemon=True)
    thread.start()
    thread.join(seconds)
    return said[0]
