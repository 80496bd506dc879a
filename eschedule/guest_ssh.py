"""The command ``ssh``: the system's own ssh to a guest's address, with the host keys that the guest reported and no others.

A guest's fingerprints are in its status, where it told them; ssh asks a small command for the keys that it knows of the guest
(``KnownHostsCommand``), which says yes to a key with one of them. Where it told none, the user's own known hosts are used under
the instance's uuid, since addresses are given to other guests in time.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from common.errors import ConfigError, Permanent
from common.image_records import ImageRecord
from common.model import InstanceStatus
from common.text import quoted
from eschedule import child
from eschedule.guest_post import locate
from eschedule.listing import InstanceRow
from eschedule.reaching import for_host, program, refuse_still
from eschedule.session import Session

_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?")
_TARGET = re.compile(r"[^\s-][^\s\x00-\x1f]*")
# %f is the fingerprint of the key that the guest shows, %H whom ssh looks for, %t and %K the key itself.
_KNOWN = 'case \' {known} \' in *" $1 "*) echo "$2 $3 $4";; esac'


def ssh(session: Session, options: argparse.Namespace) -> int:
    """Run ``ssh``; the exit code of ssh: the command's own, 255 where it did not get that far.

    Raises:
        EcomputeError: the guest cannot be logged into, and why.
    """
    if options.user is not None and not _USER.fullmatch(options.user):
        raise ConfigError(f"--user {quoted(options.user)} is no user's name, as in debian")
    if options.jump is not None and not _TARGET.fullmatch(options.jump):
        raise ConfigError(f"--jump {quoted(options.jump)} is no machine for ssh; needs HOST or USER@HOST")
    if options.identity is not None and not Path(options.identity).is_file():
        raise ConfigError(f"-i {quoted(options.identity)} is no file with a private key")
    row = locate(session, options.instance)
    refuse_still(row)
    jump = options.jump or session.config.hosts.ssh_jump
    command = arguments(
        program("ssh", "openssh-client"), row, user=options.user or user_of(session, row),
        jump=None if jump is None else for_host(jump, row.host.name), identity=options.identity, words=options.words,
    )  # fmt: skip
    session.close_store()  # for hours, maybe
    return child.run(command).exit_code


def arguments(
    ssh_program: str, row: InstanceRow, *, user: str | None, jump: str | None, identity: str | None, words: Sequence[str]
) -> list[str]:
    """The command line of ssh for *row*. Pure.

    Raises:
        Permanent: the guest has no address.
    """
    options = [f"HostKeyAlias={row.uuid}", "CheckHostIP=no", *known_by(row.status)]
    command = [ssh_program, *(part for option in options for part in ("-o", option))]
    if jump is not None:
        command += ["-J", jump]
    if identity is not None:
        command += ["-i", identity]
    if user is not None:
        command += ["-l", user]
    return [*command, "--", address_of(row), *words]


def known_by(status: InstanceStatus | None) -> list[str]:
    """The options by which ssh takes the keys that the guest reported, and none else; none where it reported none."""
    reported = " ".join(status.ready.host_keys) if status and status.ready else ""
    known = " ".join(dict.fromkeys(_FINGERPRINT.findall(reported)))
    if not known:
        return []
    script = _KNOWN.format(known=known).replace("\\", "\\\\").replace('"', '\\"')
    return [
        "UserKnownHostsFile=/dev/null", "GlobalKnownHostsFile=/dev/null", "StrictHostKeyChecking=yes",
        f'KnownHostsCommand=/bin/sh -c "{script}" sh %f %H %t %K',
    ]  # fmt: skip


def address_of(row: InstanceRow) -> str:
    """The first address of the guest.

    Raises:
        Permanent: none is known.
    """
    for card in row.status.addresses if row.status else ():
        for address in (card.address, *(more.address for more in card.more)):
            if address:
                return address
    raise Permanent(f"no address of {row.name} is known; look: eschedule show {row.name}", "NoAddress")


def user_of(session: Session, row: InstanceRow) -> str | None:
    """Whom the image of *row* says to log in as; None where it is not registered, or says nothing: then ssh decides."""
    name = row.spec.image.name if row.spec else ""
    item = session.store.get(session.keys.image(name)) if name else None
    user = ImageRecord.from_json(item.value).user if item else ""
    return user if _USER.fullmatch(user) else None
