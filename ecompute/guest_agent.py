"""Commands in a guest by the agent in it (qemu-ga): begun, and asked for later. Remembers nothing: the agent has the process.

Whatever the agent says is the guest's word: it is read with care, and only so much of it handed on. Called by ``guest_desk``.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from common.errors import Permanent
from common.retry import Deadline
from ecompute.hypervisor import Hypervisor

ANSWER_SECONDS = 5
FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.05, 1.0  # the agent tells nobody that a command has ended


@dataclass(frozen=True)
class Outcome:
    """How a command goes. *exit_code* is None while it runs; 128 and the signal's number where one ended it."""

    exit_code: int | None = None
    output: bytes = b""
    errors: bytes = b""
    is_cut: bool = False


def begin(hypervisor: Hypervisor, uuid: UUID, command: Sequence[str]) -> int:
    """Have *command* run in the guest; its process there.

    Raises:
        Permanent: no agent answers, or it does not do it.
    """
    found = _ask(hypervisor, uuid, "guest-exec", path=command[0], arg=list(command[1:]), **{"capture-output": True})
    return _number(found.get("pid"))


def outcome(
    hypervisor: Hypervisor, uuid: UUID, process: int, *, deadline: Deadline, pause: Callable[[float], bool], most_bytes: int
) -> Outcome:
    """How the command is doing, once it has ended or *deadline* is over. *pause* waits, and says whether to give up.

    The agent tells of an end once: what is not passed on is lost.

    Raises:
        Permanent: no agent answers, or it knows of no such process.
    """
    seconds = FIRST_PAUSE_SECONDS
    while True:
        found = _ask(hypervisor, uuid, "guest-exec-status", pid=process)
        if found.get("exited") is True:
            return _ended(found, most_bytes)
        if deadline.expired or pause(min(seconds, max(0.0, deadline.remaining()))):
            return Outcome()
        seconds = min(2 * seconds, MOST_PAUSE_SECONDS)


def _ended(found: dict[str, Any], most_bytes: int) -> Outcome:
    code = found.get("exitcode")
    exit_code = _number(code) & 0xFF if code is not None else 128 + (_number(found.get("signal", 0)) & 0x7F)
    output, errors = _bytes(found.get("out-data")), _bytes(found.get("err-data"))
    kept_errors = errors[: most_bytes // 4] if len(output) + len(errors) > most_bytes else errors
    kept = output[: most_bytes - len(kept_errors)]
    is_cut = len(kept) < len(output) or len(kept_errors) < len(errors)
    is_cut = is_cut or found.get("out-truncated") is True or found.get("err-truncated") is True
    return Outcome(exit_code, kept, kept_errors, is_cut)


def _ask(hypervisor: Hypervisor, uuid: UUID, execute: str, **arguments: object) -> dict[str, Any]:
    text = hypervisor.ask_agent(uuid, json.dumps({"execute": execute, "arguments": arguments}), ANSWER_SECONDS)
    try:
        found = json.loads(text)["return"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _nonsense()
    return found


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise _nonsense()
    return value


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        raise _nonsense() from None


def _nonsense() -> Permanent:
    return Permanent("the agent in the guest gave an answer that makes no sense", "NoAgent")
