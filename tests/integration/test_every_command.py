"""Every command of eschedule in the same troubles: no arguments, names that nobody has, services that are away or silent, a reader
that is gone, a Ctrl-C. Whatever the command, one clear line, the right exit code, no trace of Python, and nothing is changed.

What is particular to one command is tested with that command; here a new one cannot be forgotten.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.store import Transaction
from eschedule.arguments import parser_for
from eschedule.closed_pipe import EXIT_CLOSED_PIPE
from tests.support.eschedule import IMAGE, QUERY, Site, StandInHost
from tests.support.etcd import EtcdServer
from tests.support.placement import PlacementServer
from tests.support.processes import free_port, wait_until

NOBODY, NEW = "nobody-has-this-name", "made-here"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAAkDuLyCVCWMOe7SwQ7Zk1AtMpHHUkV0SxBYTp me@here"
WHO = (NOBODY,)
# What stands behind each command, with names that nobody has.
WORDS: dict[str, tuple[str, ...]] = {
    "create": (QUERY, IMAGE, "--no-wait"), "list": (), "ls": (), "show": WHO, "destroy": WHO, "stop": WHO, "start": WHO, "reboot": WHO,
    "pause": WHO, "unpause": WHO, "suspend": WHO, "resume": WHO, "rename": (*WHO, NEW), "protect": WHO, "unprotect": WHO,
    "label": (*WHO, "app=web"), "unlabel": (*WHO, "app"), "events": (), "wait": WHO, "top": (), "export": WHO, "edit": WHO, "apply": ("-f", "vm.yaml"),
    "diff": ("-f", "vm.yaml"),
    "snapshot create": WHO, "snapshot list": WHO, "snapshot rm": (*WHO, "one"), "snapshot revert": (*WHO, "one"),
    "rebuild": WHO, "set": (*WHO, "--allow-all"), "resize": (*WHO, "resources=VCPU:2"), "port-forward": (*WHO, "8080:80"),
    "log": WHO, "console": WHO, "screenshot": (*WHO, "none.png"), "vnc": WHO, "ssh": WHO, "exec": (*WHO, "--", "true"),
    "key add": (NEW, "key.pub"), "key list": (), "key show": WHO, "key rm": WHO,
    "hosts": (), "capacity": (QUERY,), "explain": (QUERY,), "audit": (), "doctor": (), "completion": ("bash",), "adopt": WHO,
    "network add": (NEW, "--bridge", "br0", "--subnet", "10.1.2.0/24"), "network list": (), "network show": WHO,
    "network rm": WHO,
    "image add": (NEW, "https://images.invalid/a.qcow2", "--sha256", "0" * 64), "image create": (f"{NEW}-too", "--from", NOBODY),
    "image list": (), "image show": WHO, "image rm": WHO, "image prefetch": WHO, "image cache": (),
    "host token": (), "host add": ("root@127.0.0.1:1",), "host remove": WHO, "host show": WHO, "host disable": WHO,
    "host enable": WHO, "host trait": ("add", NOBODY, "CUSTOM_FAST"), "host label": (NOBODY, "rack=1"),
    "volume create": (NEW, "--size", "1"), "volume attach": (NOBODY, NOBODY), "volume detach": WHO, "volume list": (),
    "volume show": WHO, "volume rm": WHO,
}  # fmt: skip
# What each answers where nobody has the name and there is no host: 1, but for what only looks (0), and for these.
ALONE = {"create": 3, "apply": 3, "capacity": 3, "explain": 3, "volume create": 3, "doctor": 1, "console": 2, "exec": 125}
ALONE |= dict.fromkeys(("key add", "network add", "image add", "completion"), 0)
# These find no terminal, or nothing in schedule.yaml that another machine could use, and ask nobody.
ASK_NOBODY = {"completion": 0, "console": 2, "host token": 2, "host add": 2}
PLACEMENT_FIRST = ("capacity", "explain")  # which has no host, and so nothing is to be asked of etcd
ASK_PLACEMENT = ("create", "capacity", "explain", "audit", "volume create")


def commands(parser: argparse.ArgumentParser, *path: str) -> Iterator[str]:
    """The commands that the parser knows, each with the verbs that lead to it."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for name, inner in action.choices.items():
            yield from commands(inner, *path, name)
    if not below:
        yield " ".join(path)


@pytest.fixture(scope="module")
def site(etcd: EtcdServer, module_placement: PlacementServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"), etcd, module_placement)
    (site.directory / "key.pub").write_text(f"{KEY}\n")
    (site.directory / "vm.yaml").write_text(f"name: {NEW}\nimage: {IMAGE}\ncpus: 1\nmemory: 256M\ndisk: 1G\n")
    yield site
    site.close()


Check = Callable[[subprocess.CompletedProcess[str]], str | None]
Run = Callable[[str], subprocess.CompletedProcess[str]]


def faults(run: Run, expected: Mapping[str, int], *checks: Check) -> list[str]:
    """Run every command of *expected*, four at a time; what is wrong with its exit code, its errors, or in the eyes of *checks*."""

    def one(command: str) -> list[str]:
        done = run(command)
        found = [] if done.returncode == expected[command] else [f"is to answer {expected[command]}"]
        found += [problem for check in (no_trace, *checks) if (problem := check(done))]
        return [f"{command}: {', '.join(found)}; exit {done.returncode}\n{done.stderr}\n{done.stdout[:300]}"] if found else []

    with ThreadPoolExecutor(4) as pool:
        return [problem for problems in pool.map(one, expected) for problem in problems]


def no_trace(done: subprocess.CompletedProcess[str]) -> str | None:
    return "a trace of Python" if "Traceback" in done.stderr or "this is a bug" in done.stderr else None


def one_line(done: subprocess.CompletedProcess[str]) -> str | None:
    """What failed is said in one line, at the end; before it there may be progress."""
    said = [line for line in done.stderr.splitlines() if line.startswith("eschedule: ") and ": warning: " not in line]
    is_last = said == done.stderr.splitlines()[-1:]
    return None if done.returncode == 0 or done.stdout or is_last else "more or less than one line at the end"


def in_full(site: Site) -> Run:
    return lambda command: site.run(*command.split(), *WORDS[command])


def alone(command: str) -> int:
    return ALONE.get(command, ASK_NOBODY.get(command, 1 if WORDS[command] else 0))


def test_all_commands_are_here() -> None:
    assert set(WORDS) == set(commands(parser_for(None)))


def test_what_is_left_out_is_asked_for(site: Site) -> None:
    site.configure()
    needing = {command: 2 for command, words in WORDS.items() if words}
    assert not faults(lambda command: site.run(*command.split()), needing, one_line, lambda done: done.stdout or None)


def test_a_name_that_nobody_has_is_told_and_changes_nothing(site: Site) -> None:
    site.configure()
    assert not faults(in_full(site), {command: alone(command) for command in WORDS}, one_line)
    assert site.recorded() == set()


def test_without_placement_those_that_need_it_say_so(site: Site) -> None:
    site.configure(placement_url=f"http://127.0.0.1:{free_port()}", placement_seconds=1)
    expected = dict.fromkeys(ASK_PLACEMENT, 4) | {"doctor": 1, "list": 0, "show": 1, "destroy": 1}
    away = lambda done: None if "Placement" in done.stderr + done.stdout or done.returncode < 2 else "no word of Placement"  # noqa: E731
    assert not faults(in_full(site), expected, away)
    assert site.recorded() == set()


def test_without_etcd_each_says_so(site: Site) -> None:
    point_at(site, etcd_port=free_port())
    expected = dict.fromkeys(WORDS, 4) | ASK_NOBODY | dict.fromkeys(PLACEMENT_FIRST, 3) | {"doctor": 1, "exec": 125}
    assert not faults(in_full(site), expected, one_line)


def test_a_reader_that_is_gone_ends_it_quietly(site: Site) -> None:
    site.configure()
    printing = {command: 141 for command in WORDS if not WORDS[command] and command != "host token"} | {"completion": 141}

    def run(command: str) -> subprocess.CompletedProcess[str]:
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w") as closed:
            process = site.spawn(*command.split(), *WORDS[command], stdout=closed)
        return subprocess.CompletedProcess(command, process.wait(60), "", process.communicate(timeout=60)[1])

    assert not faults(run, printing, lambda done: "says something" if "eschedule: " in done.stderr else None)


def test_ctrl_c_ends_each_that_waits_for_a_service_at_once(site: Site) -> None:
    """Etcd takes the connection and never says a word."""
    for command in WORDS.keys() - ASK_NOBODY.keys() - set(PLACEMENT_FIRST):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            point_at(site, etcd_port=silent.getsockname()[1], etcd_seconds=120)
            process = site.spawn(*command.split(), *WORDS[command])
            silent.settimeout(60)
            connection = silent.accept()[0]
            process.send_signal(signal.SIGINT)
            try:
                errors = process.communicate(timeout=60)[1]
            finally:
                process.kill()
                connection.close()
        assert process.returncode == 130, (command, errors)
        assert errors.splitlines()[-1].startswith("eschedule: interrupted") and "Traceback" not in errors, (command, errors)


# What is done to an instance of one's own, and what its host has to do or say before the command ends. None: there is no bound.
WAITING: dict[str, tuple[str, ...]] = {
    "create": (QUERY, IMAGE), "destroy": ("{}",), "stop": ("{}",), "reboot": ("{}",), "pause": ("{}",), "suspend": ("{}",),
    "rebuild": ("{}",), "set": ("{}", "--allow", "icmp"), "resize": ("{}", "--disk", "2G"), "apply": ("-f", "vm.yaml"), "port-forward": ("{}", "8080:80"), "wait": ("{}", "--for", "stopped"),
    "snapshot create": ("{}", "one"), "log": ("{}",), "screenshot": ("{}", "none.png"), "vnc": ("{}",),
    "exec": ("{}", "--", "true"), "image create": ("{}-image", "--from", "{}", "--no-seal"), "host disable": ("node1",),
    "volume create": ("{}-data", "--size", "1"),
}  # fmt: skip
OF_LETTERS = ("snapshot create", "log", "screenshot", "vnc", "exec", "image create")


@pytest.fixture
def with_guests(site: Site) -> Iterator[StandInHost]:
    """A host that has built an instance for each command, and does nothing from here on."""
    site.configure(wait_seconds=60)
    host = site.host("node1", vcpus=1000)
    for command in WAITING:
        assert site.run("create", QUERY, IMAGE, "--name", of(command)).returncode == 0
    host.close()
    yield host
    host.die()
    for consumer in site.placement.provider_allocations(host.provider):
        host.release(consumer)
    settings = {site.keys.owner(host.provider), site.keys.host_admin(host.provider)}
    site.store.commit(Transaction(deletes=tuple(site.recorded() | settings)))
    site.placement.delete_provider(host.provider)


def of(command: str) -> str:
    return f"of-{command.replace(' ', '-')}"


def changed_keys(site: Site) -> dict[str, int]:
    return {item.key: item.mod_revision for item in site.store.list(site.prefix).items}


def interrupted_in_its_wait(site: Site, command: str) -> tuple[int | None, str]:
    """The exit code of *command* and what it said, when Ctrl-C comes once it has asked for something."""
    before = changed_keys(site)
    process = site.spawn(*command.split(), *(word.format(of(command)) for word in WAITING[command]))

    def has_asked() -> bool:
        return changed_keys(site) != before or process.poll() is not None

    try:
        if command == "wait":  # which changes nothing
            assert process.stderr is not None and process.stderr.readline()
        else:
            wait_until(has_asked, timeout_seconds=60, what=f"{command} has asked for something")
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    return process.returncode, errors


def test_ctrl_c_while_a_host_does_nothing_says_what_goes_on(site: Site, with_guests: StandInHost) -> None:
    for command in WAITING:
        code, errors = interrupted_in_its_wait(site, command)
        assert code == 130 and "Traceback" not in errors, (command, code, errors)
        last = "\n".join(errors.splitlines()[-2:])
        assert command in ("wait", *OF_LETTERS) or "look: eschedule" in last or "goes on" in last, (command, errors)


def test_a_host_that_is_dead_is_named_and_not_waited_for_without_end(site: Site, with_guests: StandInHost) -> None:
    with_guests.die()
    try:
        commands = {
            command: 4 for command in WAITING if command not in ("create", "apply", "volume create", "exec", "wait")
        } | {"exec": 125, "host disable": 0}
        bounded = {command for command in commands if command not in OF_LETTERS}

        def run(command: str) -> subprocess.CompletedProcess[str]:
            bound = ("--wait-seconds", "1") if command in bounded else ()
            return site.run(*command.split(), *bound, *(word.format(of(command)) for word in WAITING[command]))

        named = lambda done: None if "no heartbeat" in done.stderr else "no word of the host"  # noqa: E731
        assert not faults(run, commands, named)
        looking = (f"wait {of('wait')} --timeout 0", "top --once", "image cache")
        assert not faults(lambda command: site.run(*command.split()), dict.fromkeys(looking, 4), named)
        assert "node1, which has no heartbeat" in site.run("wait", of("wait"), "--timeout", "0").stderr
    finally:
        with_guests.be_alive()


def test_who_follows_ends_with_who_reads_it_though_nothing_happens(site: Site) -> None:
    site.configure()
    process = site.spawn("events", "-f")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == EXIT_CLOSED_PIPE


def point_at(site: Site, *, etcd_port: int, etcd_seconds: float = 1) -> None:
    """Have the program ask an etcd at *etcd_port* of loopback."""
    site.configure(etcd_seconds=etcd_seconds)
    file = site.directory / "schedule.yaml"
    file.write_text(file.read_text().replace(site.etcd.endpoint, f"http://127.0.0.1:{etcd_port}"))
