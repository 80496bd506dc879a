"""The commands ``screenshot`` and ``vnc``: what a guest's screen shows, and how one sits down before it.

A host serves a screen at a Unix socket of its own that root alone may open, so that nothing listens on the network: who may log
in there by ssh has the way in, through libvirt or through a forwarded socket.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from common.errors import ConfigError, EcomputeError
from common.files import write_atomically
from common.guest_letters import SCREENSHOT, VNC
from common.text import escaped, quoted
from eschedule import child
from eschedule.guest_post import ask, locate
from eschedule.reaching import for_host, libvirt_uri, program, refuse_down
from eschedule.session import Session

_PNG = b"\x89PNG\r\n\x1a\n"
_MODE = 0o600  # a screen may show what is nobody else's business


def screenshot(session: Session, options: argparse.Namespace) -> int:
    """Run ``screenshot``; the exit code.

    Raises:
        EcomputeError: there is no picture to be had, or it cannot be written.
    """
    to_output = options.file == "-"
    if to_output and session.screen.is_terminal:
        raise ConfigError("a picture is not printed on a terminal; name a file, or pass it on: eschedule screenshot … - > FILE")
    path = Path(options.file)
    if not to_output and (path.is_dir() or not path.parent.is_dir()):
        fault = "is a folder" if path.is_dir() else "is in a folder that is not there"
        raise ConfigError(f"{quoted(options.file)} {fault}; name a file to write the picture to")
    row = locate(session, options.instance)
    refuse_down(row)
    picture = ask(session, row, SCREENSHOT).data
    if not picture.startswith(_PNG):
        raise EcomputeError(f"{row.host.name} sent no PNG for the screen of {row.name}; look at the log of ecompute there")
    if to_output:
        session.screen.raw(picture)
        return 0
    write_atomically(path, picture, _MODE)
    session.screen.message(f"the screen of {row.name} is in {escaped(options.file)} ({-(-len(picture) // 1024)} KiB)")
    return 0


def vnc(session: Session, options: argparse.Namespace) -> int:
    """Run ``vnc``; the exit code.

    Raises:
        EcomputeError: the guest has no screen, or it cannot be reached.
    """
    row = locate(session, options.instance)
    refuse_down(row)
    uri = libvirt_uri(session, row, options.uri)
    viewer = program("virt-viewer", "virt-viewer") if options.open else ""
    path = ask(session, row, VNC).path
    if options.open:
        ended = child.run([viewer, "--connect", uri, "--uuid", "--", str(row.uuid)])
        if ended.exit_code:
            raise EcomputeError(f"virt-viewer ended with exit code {ended.exit_code}; it says above why")
        return 0
    lines = [
        ("socket", f"{escaped(path)} on {row.host.name}, which root may open"),
        ("viewer", f"virt-viewer --connect {uri} --uuid {row.uuid}"),
        ("forward", f"ssh -N -L {_local(row.name)}:{escaped(path)} {for_host('root@{host}', row.host.name)}"),
        ("then", f"vncviewer {_local(row.name)}"),
    ]
    session.screen.data("".join(f"{name:<8}{text}\n" for name, text in lines))
    return 0


def _local(name: str) -> str:
    """A socket of the user's own: a port of this machine could be opened by everybody on it."""
    return f"{os.environ.get('XDG_RUNTIME_DIR') or '~'}/{name}.vnc"
