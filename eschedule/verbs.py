"""Which function does what each verb asks, and what the program answers where that fails.

Only the module of the verb in question is imported: all of them together take longer than most commands run.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from common.errors import ConfigError, Conflict, EcomputeError, NoCapacity, Transient

if TYPE_CHECKING:
    from eschedule.session import Session

Command = Callable[["Session", argparse.Namespace], int]

PLACES = {
    "create": "creating.create",
    "list": "looking.list_",
    "show": "looking.show",
    "destroy": "commands.destroy",
    "stop": "commands.stop",
    "start": "commands.start",
    "reboot": "commands.reboot",
    "pause": "commands.pause",
    "unpause": "commands.unpause",
    "suspend": "commands.suspend",
    "resume": "commands.resume",
    "rename": "renaming.rename",
    "protect": "protection.protect",
    "unprotect": "protection.unprotect",
    "snapshot": "snapshots.snapshot",
    "rebuild": "rebuilding.rebuild",
    "set": "setting.set_",
    "edit": "editing.edit",
    "apply": "applying.apply",
    "diff": "applying.diff",
    "export": "editing.export",
    "label": "labelling.label",
    "unlabel": "labelling.unlabel",
    "resize": "resize.resize",
    "port-forward": "forwarding.port_forward",
    "wait": "awaiting.wait",
    "top": "top.top",
    "events": "events.events",
    "log": "guest_log.log",
    "console": "console.console",
    "screenshot": "screens.screenshot",
    "vnc": "screens.vnc",
    "ssh": "guest_ssh.ssh",
    "exec": "guest_exec.exec_",
    "key": "keeping_keys.key",
    "hosts": "looking.hosts",
    "capacity": "room.capacity",
    "explain": "room.explain",
    "audit": "audit.audit",
    "doctor": "doctor.doctor",
    "adopt": "adopt.adopt",
    "network": "networks.network",
    "image": "images.image",
    "host": "hosting.host",
    "volume": "volumes.volume",
}


def command_of(verb: str) -> Command:
    """What runs *verb*; it answers the exit code."""
    module, _, function = PLACES[verb].partition(".")
    command: Command = getattr(importlib.import_module(f"eschedule.{module}"), function)
    return command


def exit_code(error: EcomputeError) -> int:
    """What the program answers for *error*."""
    for kind, code in ((Conflict, 5), (ConfigError, 2), (NoCapacity, 3), (Transient, 4)):
        if isinstance(error, kind):
            return code
    return 1
