"""The command ``console``: a guest's serial console on the user's terminal, by ``virsh console`` through its host's libvirt.

libvirt's own client carries it, here or over ssh: eschedule imports no libvirt. What the guest says is logged meanwhile, too.
"""

from __future__ import annotations

import argparse
import shutil
import sys

from common.errors import ConfigError, Conflict, Permanent, Transient
from common.text import escaped, shortened
from eschedule import child
from eschedule.guest_post import locate
from eschedule.reaching import libvirt_uri, program, refuse_still
from eschedule.session import Session

PACKAGE = "libvirt-clients"


def console(session: Session, options: argparse.Namespace) -> int:
    """Run ``console``; the exit code.

    Raises:
        EcomputeError: there is none to be had, and why.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(f"console needs a terminal; without one there is: eschedule log -f {escaped(options.instance)}")
    row = locate(session, options.instance)
    refuse_still(row)
    uri = libvirt_uri(session, row, options.uri)
    command = [program("virsh", PACKAGE), "-q", "-c", uri, "console", str(row.uuid), "--force" if options.force else "--safe"]
    size = shutil.get_terminal_size()
    session.close_store()  # for hours, maybe: nothing more is asked of etcd
    session.screen.message(
        f"the console of {row.name} on {row.host.name}; Ctrl-] leaves it. A serial line knows no size: stty rows {size.lines} "
        f"cols {size.columns}"
    )
    ended = child.run(command, keeps_errors=True)
    if ended.exit_code:
        raise failure(row.name, uri, ended.errors)
    session.screen.message(f"left the console of {row.name}, which goes on")
    return 0


def failure(name: str, uri: str, errors: str) -> Transient | Permanent:
    """What *errors*, the last words of virsh, mean."""
    said = shortened(escaped(" ".join(line.removeprefix("error: ") for line in errors.split("\n") if line.strip())), 600)
    if "Active console session exists" in errors:
        return Conflict(f"somebody else has the console of {name}; take it from them: eschedule console {name} --force")
    if "failed to connect to the hypervisor" in errors:
        return Transient(
            f"libvirt at {uri} cannot be reached: {said}; name another by --uri or hosts.libvirt_uri of schedule.yaml"
        )
    return Permanent(f"virsh could not open the console of {name}: {said or 'it did not say why'}", "NoConsole")
