"""Commands over ssh: what is no machine or option is refused before anything is started."""

from __future__ import annotations

import pytest

from common.errors import ConfigError, Transient
from eschedule.remote import Answer, Remote, file_with


@pytest.mark.parametrize("target", ["", "-oProxyCommand=touch /tmp/x", "a b", "root@node\n2", "root@node\x1b[31m"])
def test_what_ssh_would_take_for_something_else_is_no_machine(target: str) -> None:
    with pytest.raises(ConfigError):
        Remote(target)


@pytest.mark.parametrize("option", ["", "-v", "Port", "=22", "Port=22\nProxyCommand=x"])
def test_what_is_no_option_of_ssh_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="ssh_config"):
        Remote("root@node", [option])


def test_a_machine_that_cannot_be_reached_is_told_with_what_ssh_said_and_what_to_try() -> None:
    remote = Remote("root@127.0.0.1", ["Port=1", "ConnectTimeout=5"])
    with pytest.raises(Transient, match=r"(?s)ssh root@127.0.0.1 failed: .*refused.*accept-new") as failed:
        remote.run("true", seconds=30)
    assert "\n" not in str(failed.value)


def test_a_command_has_a_bound() -> None:
    # A proxy that says nothing stands for a machine that hangs.
    remote = Remote("node", ["ProxyCommand=sleep 60", "ConnectTimeout=60"])
    with pytest.raises(Transient, match="not done within 1 s"):
        remote.run("true", seconds=1)


def test_what_is_handed_over_is_in_no_folder() -> None:
    with file_with(b"geheim") as file:
        assert file.read() == b"geheim"


def test_what_a_shell_prints_before_a_command_is_none_of_its_words() -> None:
    assert Answer(0, "Welcome to node1!\n\nthere\n", "").last_line == "there"
    assert Answer(0, "", "").last_line == ""
