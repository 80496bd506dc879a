"""The letters by which ``eschedule`` reaches a guest through its host, and the record that the host answers with.

A letter of one of these kinds is a ``findings.Letter`` whose arguments name one instance and what is asked of it; a host of an
earlier version knows none of them and answers nothing. Pure: names, bounds and one record.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from common.records import SCHEMA, Record

LOG = "log"
SCREENSHOT = "screenshot"
VNC = "vnc"
EXEC = "exec"
EXEC_RESULT = "exec-result"
KINDS = frozenset({LOG, SCREENSHOT, VNC, EXEC, EXEC_RESULT})

MOST_DATA_BYTES = 180 << 10  # of a guest's, in one answer: in base64, with all the rest, below what a letter may have
MOST_WAIT_SECONDS = 20.0  # that a host keeps a letter until there is something to answer; well below a letter's lease


@dataclass(frozen=True)
class GuestAnswer(Record):
    """What a host answers about one guest; which fields mean something depends on what was asked.

    Args:
        problem: why there is nothing, for people; "" where all is well. *reason*: the same in one word.
        is_transient: it may be otherwise when it is asked again.
        data_base64: of the log, of a picture (PNG), or of what a command printed. *errors_base64*: of its standard error.
        position: where in the log the next letter goes on. *has_more*: there is more already.
        is_gap: something was lost between the position that was asked for and this: the log was rotated away.
        is_cut: there was more than fits.
        path: of the socket on the host where the guest's screen is served.
        process: of a command, in the guest. *exit_code*: None while it runs.
    """

    problem: str = ""
    reason: str = ""
    is_transient: bool = False
    data_base64: str = ""
    errors_base64: str = ""
    position: str = ""
    has_more: bool = False
    is_gap: bool = False
    is_cut: bool = False
    path: str = ""
    process: int = 0
    exit_code: int | None = None
    schema: int = SCHEMA

    @property
    def data(self) -> bytes:
        return base64.b64decode(self.data_base64)

    @property
    def errors(self) -> bytes:
        return base64.b64decode(self.errors_base64)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
