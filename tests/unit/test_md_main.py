"""md-server's command line: what configuration and options come to, and one clear line for what is wrong."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path

import pytest

from md_server import main as md_main
from md_server.main import main, settings_of


def settings(tmp_path: Path, yaml: str, *arguments: str):
    config = tmp_path / "compute.yaml"
    config.write_text(yaml)
    return settings_of(md_main.parser().parse_args(["--config", str(config), *arguments]))


def test_the_configuration_is_what_counts(tmp_path):
    found = settings(
        tmp_path, "name: h7\npaths: {state_dir: /s, run_dir: /r}\nmetadata: {mode: external, port: 8080, bridge: br7}\n"
    )
    assert (str(found.address), found.port, found.bridge, found.zone) == ("169.254.169.254", 8080, "br7", "h7")
    assert (found.directory, found.run_dir) == (Path("/s/metadata"), Path("/r"))


def test_options_come_before_it(tmp_path):
    found = settings(tmp_path, "", "--state-dir", "/a", "--run-dir", "/b", "--listen", "169.254.169.254:81", "--bridge", "br1")
    assert (str(found.address), found.port, found.bridge) == ("169.254.169.254", 81, "br1")
    assert (found.directory, found.run_dir) == (Path("/a/metadata"), Path("/b"))


@pytest.mark.parametrize(
    ("listen", "bridge"), [("127.0.0.1:8775", ""), ("[::1]:8775", ""), ("0.0.0.0:80", ""), ("169.254.169.254:81", "virbr0")]
)
def test_another_address_than_the_configured_one_touches_no_interface(tmp_path, listen, bridge):
    assert settings(tmp_path, "", "--listen", listen).bridge == bridge


@pytest.mark.parametrize(
    "listen", ["x", "127.0.0.1", ":80", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:٣", "x:80", "::1"]
)
def test_a_wrong_listen_is_one_line_and_exit_2(listen, capsys):
    assert main(["--check-config", "--listen", listen]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_every_fault_of_a_configuration_is_a_line_and_exit_2(tmp_path, capsys):
    (tmp_path / "compute.yaml").write_text("metadata: {port: 99999, mode: perhaps}\n")
    assert main(["--check-config", "--config", str(tmp_path / "compute.yaml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("md-server: ") for line in lines)


def test_nothing_is_served_where_the_mode_is_off(tmp_path, capsys):
    (tmp_path / "compute.yaml").write_text("metadata: {mode: off}\n")
    assert main(["--config", str(tmp_path / "compute.yaml")]) == 2
    assert "metadata.mode is off" in capsys.readouterr().err


def test_removing_needs_a_bridge(capsys, tmp_path):
    assert main(["--remove-address", "--listen", "127.0.0.1:80", "--run-dir", str(tmp_path)]) == 2
    assert "bridge" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["md_server.main", "ecompute.main"])
def test_a_wrong_command_line_is_one_line(program, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(program).main(["--nope", "x"])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert (said.count("\n"), "unrecognized arguments: --nope x; see: " in said) == (1, True)


@pytest.mark.parametrize(("program", "name"), [("md_server.main", "md-server"), ("ecompute.main", "ecompute")])
def test_the_version_is_that_of_the_package(program, name, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(program).main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"{name} {importlib.metadata.version('etcd-compute')}\n")
