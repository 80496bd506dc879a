"""How a client reaches a guest: the command lines that it makes, and what it makes of what programs say."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from common.errors import ConfigError, Conflict, Permanent, Transient
from common.model import Address, InstanceStatus, IpAddress, Phase, Ready
from eschedule import child, console, reaching
from eschedule.arguments import parse
from eschedule.guest_ssh import address_of, arguments, known_by
from eschedule.listing import HostName, InstanceRow
from tests.support.processes import wait_until

INSTANCE = UUID("3f2a9c1e-0b7d-4c55-9e57-0a1b2c3d4e5f")
PRINT = "SHA256:" + "Ab+/" * 10 + "xyz"
OTHER = "SHA256:" + "Zz09" * 10 + "xyz"


def row(
    phase: Phase = Phase.RUNNING, *, is_alive: bool = True, addresses: tuple[Address, ...] = (), keys: tuple[str, ...] = ()
):
    ready = Ready("2026-01-01T00:00:00Z", "up", keys) if keys else None
    status = InstanceStatus(phase, addresses=addresses, ready=ready)
    return InstanceRow(INSTANCE, "web", HostName(INSTANCE, "node1", is_alive), phase, "", None, status)


ADDRESS = Address("default", "52:54:c0:a8:7a:32", "192.168.122.50")


def test_a_guest_that_does_not_run_or_whose_host_is_dead_is_refused() -> None:
    reaching.refuse_down(row())
    with pytest.raises(Permanent, match="web does not run: it is Stopped"):
        reaching.refuse_down(row(Phase.STOPPED))
    with pytest.raises(Transient, match="no heartbeat"):
        reaching.refuse_down(row(is_alive=False))


def test_a_host_that_calls_itself_an_option_is_not_put_into_an_address() -> None:
    assert reaching.for_host("qemu+ssh://root@{host}/system", "node1.example") == "qemu+ssh://root@node1.example/system"
    for name in ("-oProxyCommand=evil", "a b", "x/y?z", ""):
        with pytest.raises(ConfigError):
            reaching.for_host("root@{host}", name)
    assert reaching.for_host("jump.example", "-x") == "jump.example"


def test_a_program_that_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"virsh is not installed.*apt-get install libvirt-clients"):
        reaching.program("virsh", "libvirt-clients")


# -- ssh -------------------------------------------------------------------------------------------------------------------


def test_the_command_line_of_ssh() -> None:
    made = arguments(
        "/usr/bin/ssh", row(addresses=(ADDRESS,)), user="debian", jump="root@node1", identity="key", words=["a", "-b"]
    )
    assert made == [
        "/usr/bin/ssh", "-o", f"HostKeyAlias={INSTANCE}", "-o", "CheckHostIP=no", "-J", "root@node1", "-i", "key",
        "-l", "debian", "--", "192.168.122.50", "a", "-b",
    ]  # fmt: skip


def test_the_address_is_the_first_that_is_known() -> None:
    later = Address("", "52:54:00:00:00:01", "", 0, more=(IpAddress("fd00::5", 64),))
    assert address_of(row(addresses=(later, ADDRESS))) == "fd00::5"
    with pytest.raises(Permanent, match="no address of web is known"):
        address_of(row())


def test_without_reported_keys_the_users_own_decide() -> None:
    assert known_by(None) == [] and known_by(row(keys=("nothing",)).status) == []


@pytest.mark.parametrize(("shown", "is_known"), [(PRINT, True), (OTHER, True), ("SHA256:" + "A" * 43, False), ("NONE", False)])
def test_only_a_key_that_the_guest_reported_is_known(shown: str, is_known: bool) -> None:
    """The command is run as ssh splits it: by double quotes and backslashes, which shlex does alike."""
    options = known_by(row(keys=(f"{PRINT} (ED25519)", f"256 {OTHER} root@x (RSA)", "$(touch /tmp/x); ' SHA256:short")).status)
    command = next(option for option in options if option.startswith("KnownHostsCommand=")).partition("=")[2]
    words = [
        {"%f": shown, "%H": "the-alias", "%t": "ssh-ed25519", "%K": "AAAA"}.get(word, word) for word in shlex.split(command)
    ]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout
    assert said == ("the-alias ssh-ed25519 AAAA\n" if is_known else "")
    assert "StrictHostKeyChecking=yes" in options


def test_ssh_takes_the_options(tmp_path: Path) -> None:
    made = arguments("ssh", row(addresses=(ADDRESS,), keys=(PRINT,)), user=None, jump=None, identity=None, words=[])
    shown = subprocess.run([made[0], "-G", *made[1:]], check=False, capture_output=True, text=True, timeout=20, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert f"hostkeyalias {INSTANCE}" in shown.stdout and "knownhostscommand /bin/sh -c" in shown.stdout


# -- the console -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (
            "error: failed to connect to the hypervisor\nerror: Cannot recv data: \x1b[31mno\n",
            Transient,
            "\\x1b[31mno; name another by",
        ),
        ("error: operation failed: Active console session exists for this domain\n", Conflict, "eschedule console web --force"),
        ("error: The domain is not running\n", Permanent, "The domain is not running"),
        ("", Permanent, "did not say why"),
    ],
)
def test_what_virsh_says_becomes_what_to_do(said: str, kind: type[Exception], text: str) -> None:
    failure = console.failure("web", "qemu+ssh://root@node1/system", said)
    assert type(failure) is kind and text in str(failure) and "\n" not in str(failure)


# -- programs that have the terminal ---------------------------------------------------------------------------------------


def test_a_programs_end_is_told_as_the_shell_tells_it() -> None:
    assert child.run(["sh", "-c", "exit 7"]).exit_code == 7
    assert child.run(["sh", "-c", "kill -9 $$"]).exit_code == 137
    assert child.run(["sh", "-c", "echo why >&2; exit 1"], keeps_errors=True) == child.Ended(1, "why\n")
    with pytest.raises(Exception, match="cannot be started"):
        child.run(["/nowhere/at-all"])


def test_a_program_that_is_interrupted_is_waited_for_and_the_handlers_come_back() -> None:
    """Ctrl-C reaches both; the program decides what it means."""
    script = (
        "import signal, sys; from eschedule import child\n"
        "before = signal.getsignal(signal.SIGINT)\n"
        "ended = child.run(['sh', '-c', 'trap \"echo heard; exit 3\" INT; echo ready; while :; do read x; done'])\n"
        "sys.exit(ended.exit_code if signal.getsignal(signal.SIGINT) is before else 99)"
    )
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=reader, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        os.write(writer, b"\n")
        wait_until(lambda: process.poll() is not None, timeout_seconds=20, what="it ended")
        assert (process.returncode, process.stdout.read()) == (3, "heard\n")
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


# -- the command line ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["ssh", "exec"])
@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["web", "--", "ls", "-l"], ["ls", "-l"]),
        (["{option}", "5", "web", "--", "ls", "--", "-x"], ["ls", "--", "-x"]),
        (["web", "{option}", "5", "--", "ls"], ["ls"]),
        (["web", "ls"], ["ls"]),
    ],
)
def test_a_command_stands_behind_two_dashes_wherever_the_options_are(verb: str, words: list[str], command: list[str]) -> None:
    option = {"ssh": "--user", "exec": "--timeout-seconds"}[verb]
    parsed = parse([verb, *(word.format(option=option) for word in words)])
    assert (parsed.instance, parsed.words) == ("web", command)
