"""Talks to the kernel's packet filter: loads and lists our own tables, and keeps one rule in a chain that others own.

The only place that runs ``nft`` and ``iptables``. Every call is bounded, gets what it does by its standard input, and is whole
or not at all: the kernel takes one text as one change. ``generation`` costs no process, and tells whether anything has changed
in the packet filter since it was last asked. Knows no instance; ``ecompute/firewall.py`` makes the texts.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Sequence
from typing import Protocol

from common.errors import Permanent, Transient
from ecompute.firewall import MARK, TABLE

CALL_SECONDS = 20.0  # usually 10 ms; iptables waits for whoever else changes something
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"  # nft and iptables are where ordinary users do not look

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
NETLINK_NETFILTER, NLM_F_REQUEST, NLMSG_ERROR = 12, 0x1, 2
NFT_MSG_GETGEN = 10 << 8 | 16
NFTA_GEN_ID = 1
_REQUEST = struct.Struct("=IHHIIBBH")  # the header of netlink, and that of nfnetlink behind it
_ATTRIBUTE = struct.Struct("=HH")

# What others refuse is refused, whatever a table of ours says: libvirt lets nobody begin to speak to guests behind NAT, ufw and
# Docker let nobody through at all. So their chain begins with our rule.
COMMENT = f"{TABLE}: ports that lead to guests"
_MARK = f"0x{MARK:08x}"
_ACCEPT = f'-m connmark --mark {MARK:#x}/{MARK:#x} -m comment --comment "{COMMENT}" -j ACCEPT'
_REFUSING = re.compile(r"-A FORWARD (?:.* )?-j (?:REJECT|DROP|LIBVIRT_FWI|ufw6?-)")


class FirewallMissing(Permanent):
    """This host cannot filter as it is asked to; another may."""

    reason = "FirewallMissing"


class PacketFilter(Protocol):
    """What ``FirewallKeeper`` asks of the packet filter. ``tests/fakes/packet_filter.py`` is one in memory."""

    def load(self, script: str, *, is_trial: bool = False) -> None:
        """Do what *script* says, all of it or nothing; of a trial nothing, whether it could be.

        Raises:
            FirewallMissing: there is no nft, or this kernel does not know what it asks for.
            Transient: it took too long.
        """
        ...

    def listing(self, family: str) -> str:
        """Our table of *family* as the kernel has it, without what only passes; "" where there is none."""
        ...

    def ruleset(self) -> str | None:
        """All rules of all tables, others' too; None where they are not to be seen. Raises as ``load`` does."""
        ...

    def generation(self) -> int:
        """A number that is another one whenever something has been changed; -1 where the kernel does not tell."""
        ...

    def let_through(self, family: str, *, is_wanted: bool) -> bool:
        """Have our rule, which lets forwards of *family* pass, stand before all that refuses; whether that changed anything."""
        ...


class Nftables:
    """The packet filter of this network namespace."""

    def load(self, script: str, *, is_trial: bool = False) -> None:
        answer = self._run(["nft", *(["--check"] if is_trial else []), "-f", "-"], script)
        if answer.returncode:
            raise FirewallMissing(f"the packet filter refused a rule: {_first_line(answer.stderr)}; see: nft list ruleset")

    def listing(self, family: str) -> str:
        # Stateless and terse: no counters, and of our sets what they are, not what is in them at the moment.
        answer = self._run(["nft", "--stateless", "--terse", "list", "table", family, TABLE])
        return answer.stdout if answer.returncode == 0 else ""

    def ruleset(self) -> str | None:
        if _are_elsewhere():
            return None
        answer = self._run(["nft", "--stateless", "--terse", "list", "ruleset"])
        return answer.stdout if answer.returncode == 0 else None

    def generation(self) -> int:
        with contextlib.suppress(OSError, struct.error):
            return _generation()
        return -1

    def let_through(self, family: str, *, is_wanted: bool) -> bool:
        is_changed = self._in_libvirts_table(family, is_wanted=is_wanted)
        return self._in_iptables(family, is_wanted=is_wanted) or is_changed

    def _in_libvirts_table(self, family: str, *, is_wanted: bool) -> bool:
        """libvirt from 10.4 on has a table of its own."""
        where = f"{family} libvirt_network forward"
        answer = self._run(["nft", "--handle", "list", "chain", *where.split()])
        if answer.returncode:
            return False
        rules = [line.strip() for line in answer.stdout.splitlines() if " # handle " in line and not line.endswith("{")]
        rules = [rule for rule in rules if not rule.startswith(("chain ", "type "))]
        ours = [rule for rule in rules if COMMENT in rule]
        if ours == (rules[:1] if is_wanted else []):
            return False
        script = [f"delete rule {where} handle {rule.rpartition(' ')[2]}" for rule in ours]
        if is_wanted:
            script.append(f'insert rule {where} ct mark and {_MARK} == {_MARK} accept comment "{COMMENT}"')
        self.load("\n".join(script) + "\n")
        return True

    def _in_iptables(self, family: str, *, is_wanted: bool) -> bool:
        program = "ip6tables" if family == "ip6" else "iptables"
        if _found(program) is None:
            return False
        answer = self._run([program, "-w", "-S", "FORWARD"])
        lines = answer.stdout.splitlines() if answer.returncode == 0 else []
        change = iptables_change(lines, is_wanted=is_wanted)
        if not change:
            return False
        script = "\n".join(["*filter", *change, "COMMIT", ""])
        answer = self._run([f"{program}-restore", "-w", "--noflush"], script)
        if answer.returncode:
            raise FirewallMissing(f"{program} refused a rule for forwarded ports: {_first_line(answer.stderr)}")
        return True

    @staticmethod
    def _run(command: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
        program = _found(command[0])
        if program is None:
            raise FirewallMissing(
                f"{command[0]} is not on this host, and without it no port can be forwarded and nothing be filtered: "
                "apt-get install nftables iptables"
            )
        try:
            return subprocess.run(
                [program, *command[1:]], input=text, capture_output=True, text=True, timeout=CALL_SECONDS, check=False, cwd="/",
                encoding="utf-8", errors="replace",  # comments of others are any bytes
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Transient(f"{command[0]} did not end: {error}") from error


class SimulatedFilter:
    """Beside libvirt's mock nothing is real: all is taken, and nothing done on this machine."""

    def load(self, script: str, *, is_trial: bool = False) -> None:
        pass

    def listing(self, family: str) -> str:  # noqa: ARG002 - of the protocol
        return ""

    def ruleset(self) -> str | None:
        return None

    def generation(self) -> int:
        return 1

    def let_through(self, family: str, *, is_wanted: bool) -> bool:  # noqa: ARG002
        return False


def packet_filter(libvirt_uri: str) -> PacketFilter:
    """The packet filter of the host that the libvirt at *libvirt_uri* is on."""
    return SimulatedFilter() if libvirt_uri.startswith("test:") else Nftables()


def iptables_change(lines: Sequence[str], *, is_wanted: bool) -> list[str]:
    """What to tell iptables-restore so that our rule stands before all that refuses; nothing where it is so already.

    Where nothing refuses, none is needed.

    Args:
        lines: the chain FORWARD, as ``iptables -S`` shows it.
    """
    rules = [line for line in lines if line.startswith("-A FORWARD")]
    ours = [number for number, rule in enumerate(rules) if f'"{COMMENT}"' in rule]
    refuses_at = next((number for number, rule in enumerate(rules) if _REFUSING.match(rule)), None)
    if refuses_at is None and "-P FORWARD DROP" in lines:
        refuses_at = len(rules)
    if not is_wanted or refuses_at is None:
        return [f"-D{rules[number].removeprefix('-A')}" for number in ours]
    if len(ours) == 1 and ours[0] < refuses_at:
        return []
    return [*(f"-D{rules[number].removeprefix('-A')}" for number in ours), f"-I FORWARD 1 {_ACCEPT}"]


def is_there() -> bool:
    """Whether this host has nft."""
    return _found("nft") is not None


def _are_elsewhere() -> bool:
    """Whether iptables or ebtables is the older one, of whose rules nft knows nothing."""
    found = (_found(program) for program in ("iptables", "ebtables"))
    return any("legacy" in os.path.realpath(program) for program in found if program)


def _found(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_PATH}")


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "it did not say why")


def _generation() -> int:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as kernel:
        kernel.settimeout(5.0)
        kernel.bind((0, 0))
        kernel.send(_REQUEST.pack(_REQUEST.size, NFT_MSG_GETGEN, NLM_F_REQUEST, 1, 0, socket.AF_UNSPEC, 0, 0))
        answer = kernel.recv(8192)
    length, kind, *_ = _REQUEST.unpack_from(answer)
    if kind == NLMSG_ERROR:
        return -1
    offset = _REQUEST.size
    while offset + _ATTRIBUTE.size <= length:
        size, attribute = _ATTRIBUTE.unpack_from(answer, offset)
        if attribute == NFTA_GEN_ID:
            return int.from_bytes(answer[offset + _ATTRIBUTE.size : offset + size], "big")
        offset += max(_ATTRIBUTE.size, (size + 3) & ~3)
    return -1
