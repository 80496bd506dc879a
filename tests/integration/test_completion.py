"""Completion in a real bash, with the names of a real etcd; and with an etcd that wants a password, or is away."""

from __future__ import annotations

import subprocess
from pathlib import Path

from common.config import EtcdConfig
from eschedule.etcd_names import fields_below, keys_below
from tests.support.eschedule import QUERY, Site
from tests.support.etcd import EtcdAdmin, EtcdServer
from tests.support.processes import VENV_BIN, free_port

TAB = """
source <({program} completion bash)
COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}
read -ra COMP_WORDS <<<"$COMP_LINE"
[[ $COMP_LINE == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_eschedule
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def tab(site: Site, line: str) -> list[str]:
    """What bash would offer at the end of *line*."""
    program = VENV_BIN / "eschedule"
    text = TAB.format(program=program, line=line.replace("eschedule", str(program), 1))
    answer = subprocess.run(
        ["bash", "--norc", "-c", text], cwd=site.directory, capture_output=True, text=True, timeout=30, check=False
    )
    assert answer.stderr == "", answer.stderr
    return [word for word in answer.stdout.splitlines() if word]


def test_bash_offers_verbs_options_names_and_files(site: Site, tmp_path: Path) -> None:
    site.host("node1")
    for name in ("web-1", "web-2", "db"):
        assert site.run(QUERY, "http://images/x", "--name", name, "--no-wait").returncode == 0
    (site.directory / "alice.pub").write_text("")
    assert tab(site, "eschedule sho") == ["show"]
    assert tab(site, "eschedule show w") == ["web-1", "web-2"]
    assert tab(site, "eschedule stop web-1 ") == ["db", "web-1", "web-2"]
    assert tab(site, "eschedule host disable ") == ["node1"]
    assert tab(site, "eschedule list --output=na") == ["--output=name"]
    assert "alice.pub" in tab(site, "eschedule create x --key al")
    site.configure(etcd={"endpoints": [f"http://127.0.0.1:{free_port()}"]})
    assert tab(site, "eschedule show ") == []
    assert tab(site, "eschedule sho") == ["show"]


def test_names_of_an_etcd_with_users(etcd_server: EtcdServer, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("geheim")
    config = EtcdConfig(endpoints=(etcd_server.endpoint,), username="root", password_file=password)
    with EtcdAdmin(etcd_server) as admin:
        admin.put_bytes(b"/x/names/web-1", b"1")
        admin.put_bytes(b"/x/hosts/1", b'{"name": "node1"}')
        admin.put_bytes(b"/x/hosts/2", b"no JSON")
        admin.enable_auth("geheim")
    assert keys_below(config, "/x/names/") == ["web-1"]
    assert fields_below(config, "/x/hosts/", "name") == ["node1"]
    password.write_text("another")
    assert keys_below(config, "/x/names/") == []
