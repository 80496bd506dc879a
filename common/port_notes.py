"""What a host notes about ports of its that are to lead to a guest: written by ecompute, read by eschedule, worded here. Pure.

A note is a text for people, as ``port 8080/tcp of this host is taken by instance web; choose another``. Its beginning says of
which ports it speaks and what is the matter with them, so that who lists them need not guess.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable

Port = tuple[int, str]  # number, protocol

_PORTS = re.compile(r"port ((?:[0-9]+/(?:tcp|udp)(?:, )?)+) ")


class PortTrouble(enum.Enum):
    """What keeps a port from leading to its guest; the value is what follows the ports in a note."""

    TAKEN = "of this host is taken by"
    NOWHERE = "of the host leads nowhere yet:"
    SHUT = "of the host leads to"

    @property
    def shown(self) -> str:
        """For people, in a word or three."""
        return {"TAKEN": "taken", "NOWHERE": "leads nowhere yet", "SHUT": "shut by its rules"}[self.name]


def port_note(ports: Iterable[Port], trouble: PortTrouble, text: str) -> str:
    """The note that says of *ports*, what is the matter with them; *text* completes the sentence."""
    return f"port {', '.join(f'{number}/{protocol}' for number, protocol in ports)} {trouble.value} {text}"


def troubles(notes: Iterable[str]) -> dict[Port, tuple[PortTrouble, str]]:
    """What is the matter with which ports, and the note that says so; the first of several counts, and others are left out."""
    found: dict[Port, tuple[PortTrouble, str]] = {}
    for note in notes:
        ports = _PORTS.match(note)
        trouble = next((one for one in PortTrouble if ports and note.startswith(one.value, ports.end())), None)
        if ports and trouble:
            for text in ports[1].split(", "):
                number, _, protocol = text.partition("/")
                found.setdefault((int(number), protocol), (trouble, note))
    return found
