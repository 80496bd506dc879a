"""Requests in people's words, by zones, likenesses and files, labels and selectors: the real program over etcd and Placement."""

from __future__ import annotations

import json
from pathlib import Path

from common.model import InstanceSpec
from tests.support.eschedule import IMAGE, QUERY, Site

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAAkDuLyCVCWMOe7SwQ7Zk1AtMpHHUkV0SxBYTp me@here"
NEEDS = ("--cpus", "1", "--memory", "256M", "--disk", "1G")


def spec_of(site: Site, name: str) -> InstanceSpec:
    uuid = site.uuid_of(name)
    (item,) = [item for item in site.store.list(site.keys.specs()).items if item.key.endswith(str(uuid))]
    return InstanceSpec.from_json(item.value)


def ok(site: Site, *words: str) -> str:
    answer = site.run(*words)
    assert answer.returncode == 0, (words, answer.stderr)
    return answer.stdout + answer.stderr


def refused(site: Site, code: int, *words: str) -> str:
    answer = site.run(*words)
    assert answer.returncode == code and answer.stderr.count("eschedule: ") == 1, (words, answer.returncode, answer.stderr)
    return answer.stderr


def test_what_is_needed_is_said_by_options_and_rehearsed_without_taking_anything(site: Site) -> None:
    site.host("large", vcpus=4, memory_mib=1100, disk_gib=50, traits=("CUSTOM_FAST",))
    small = site.host("small", vcpus=4, memory_mib=600, disk_gib=50)
    for verb in ("capacity", "explain"):
        by_words, raw = ok(site, verb, *NEEDS, "--trait", "CUSTOM_FAST"), ok(site, verb, f"{QUERY}&required=CUSTOM_FAST")
        assert by_words == raw and "large" in by_words
    planned = json.loads(site.run("create", *NEEDS, IMAGE, "--name", "web", "--host", "small", "--dry-run", "--json").stdout)
    assert planned["host"] == "small" and planned["spec"]["resources"] == {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}
    assert site.keys.name("web") in planned["keys"]
    told = ok(
        site,
        "create",
        *NEEDS,
        IMAGE,
        "--name",
        "w{n}",
        "--count",
        "3",
        "--group",
        "apart",
        "--policy",
        "soft-anti-affinity",
        "--dry-run",
    )
    assert told.count("host ") == 3 and "a dry run: nothing was claimed" in told
    assert "2 of them would fit" in refused(site, 3, "create", *NEEDS, IMAGE, "--host", "small", "--count", "3", "--dry-run")
    assert site.recorded() == set() == site.claimed()

    ok(
        site,
        "create",
        *NEEDS,
        IMAGE,
        "--name",
        "web",
        "--host",
        "small",
        "--label",
        "app=web",
        "--restart",
        "always",
        "--publish",
        "80:80",
    )
    assert site.placement.consumer(site.uuid_of("web")).allocations.keys() == {small.provider}
    assert "is taken" in refused(site, 5, "create", *NEEDS, IMAGE, "--name", "web", "--dry-run")
    told = ok(site, "create", "--like", "web", "--memory", "128M", "--name", "web-2", "--label", "app=db")
    assert "the ports of its host stay its own" in told
    first, second = spec_of(site, "web"), spec_of(site, "web-2")
    assert (second.restart, second.labels, second.memory_mib, second.forwards) == (first.restart, {"app": "db"}, 128, ())
    assert "in_tree" in second.query and second.hostname == "web-2"
    assert "there is no instance wep" in refused(site, 1, "create", "--like", "wep")
    assert "no host" in refused(site, 1, "create", *NEEDS, IMAGE, "--host", "nohost")
    assert "there is no zone" in refused(site, 1, "create", *NEEDS, IMAGE, "--zone", "b")


def test_labels_choose_instances_for_every_verb(site: Site) -> None:
    site.host("node", vcpus=8, memory_mib=4096, disk_gib=50)
    ok(site, QUERY, IMAGE, "--name", "w{n}", "--count", "3", "--label", "app=web")
    ok(site, "label", "w1", "tier=front", "old=yes")
    ok(site, "label", "-l", "app=web", "seen=1")
    assert ok(site, "list", "-l", "app=web,!tier", "-o", "name").split() == ["w2", "w3"]
    assert ok(site, "list", "-l", "tier!=front,app", "-o", "name").split() == ["w2", "w3"]
    ok(site, "unlabel", "w1", "old")
    ok(site, "label", "w2", "w3", "app=db", "seen-")
    assert "app=web,seen=1,tier=front" in ok(site, "list", "-o", "wide")
    assert "app=db" in ok(site, "show", "w2") and spec_of(site, "w1").boot_request == 1
    assert {row["labels"]["app"] for row in json.loads(site.run("list", "--json").stdout)} == {"web", "db"}
    assert [row["name"] for row in json.loads(site.run("show", "-l", "app=db", "--json").stdout)] == ["w2", "w3"]
    ok(site, "set", "-l", "app=db", "--allow", "tcp:22")
    assert spec_of(site, "w3").allow == ("tcp:22",) and spec_of(site, "w1").allow is None
    ok(site, "destroy", "-l", "app=db")
    assert ok(site, "list", "-o", "name").split() == ["w1"]
    for words, code, said in (
        (("destroy", "-l", "app=db"), 1, 'no instance has labels like "app=db"'),
        (("list", "-l", "nobody"), 1, "no instance has labels"),
        (("stop", "-l", "app=web,"), 2, "has an empty part"),
        (("unlabel", "w1", "seen=1"), 2, "without values"),
        (("label", "nobody", "a=b"), 1, "there is no instance nobody"),
    ):
        assert said in refused(site, code, *words), words


FILE = f"""\
name: web
cpus: 1
memory: 256M
disk: 1G
image: {IMAGE}
labels: {{app: web}}
keys: [{KEY}]
restart: always
---
name: db
request: {QUERY}
image: {IMAGE}
"""


def test_apply_makes_and_changes_what_files_say_and_nothing_twice(site: Site, tmp_path: Path) -> None:
    site.host("node", vcpus=8, memory_mib=2048, disk_gib=50)
    file = tmp_path / "site.yaml"
    file.write_text(FILE)
    told = site.run("diff", "-f", str(file), "--json")
    assert told.returncode == 1 and [row["action"] for row in json.loads(told.stdout)] == ["create", "create"]
    assert "web: created" in ok(site, "apply", "-f", str(file))
    revisions = {item.key: item.mod_revision for item in site.store.list(site.keys.specs()).items}
    assert site.run("diff", "-f", str(file)).returncode == 0
    assert "web: as the file says" in ok(site, "apply", "-f", str(file))
    assert revisions == {item.key: item.mod_revision for item in site.store.list(site.keys.specs()).items}

    file.write_text(
        FILE.replace("memory: 256M", "memory: 512M\nallow: []\npower: stopped").replace("app: web", "app: web, tier: front")
    )
    told = site.run("diff", "-f", str(file))
    assert told.returncode == 1 and "MEMORY_MB 256 → MEMORY_MB 512" in told.stdout and "everybody → nobody" in told.stdout
    assert "web: changed: memory, labels, allow, power" in ok(site, "apply", "-f", str(file))
    spec = spec_of(site, "web")
    assert (spec.memory_mib, spec.allow, spec.labels, spec.desired) == (512, (), {"app": "web", "tier": "front"}, "stopped")
    assert site.placement.consumer(spec.uuid).allocations.popitem()[1]["MEMORY_MB"] == 512
    assert site.run("diff", "-f", str(file)).returncode == 0

    file.write_text(
        FILE.replace("restart: always", "restart: never\nhostname: other").replace(f"image: {IMAGE}", "image: /srv/y")
    )
    told = site.run("apply", "-f", str(file))
    assert (
        told.returncode == 5
        and "only by making it anew" in told.stderr
        and "eschedule rebuild web --image /srv/y" in told.stderr
    )
    assert f"{file}: line 9: hostname" in told.stderr and spec_of(site, "web") == spec

    exported = ok(site, "export", "web")
    (tmp_path / "web.yaml").write_text(exported)
    assert site.run("diff", "-f", str(tmp_path / "web.yaml")).returncode == 0, exported
    (tmp_path / "web.yaml").write_text(exported.replace("name: web", "name: web-2"))
    ok(site, "create", "--file", str(tmp_path / "web.yaml"), "--cpus", "2")
    assert spec_of(site, "web-2").vcpus == 2 and spec_of(site, "web-2").keys == (KEY,)
    assert spec_of(site, "web-2").desired == "stopped", "the file says so"


def test_a_mistake_in_a_file_is_told_with_its_line_before_anything_is_done(site: Site, tmp_path: Path) -> None:
    site.host("node", vcpus=4, memory_mib=1024, disk_gib=50)
    (tmp_path / "vm.yaml").write_text(FILE.replace("request:", "cpu: 2\nrequest:"))
    told = refused(site, 2, "apply", "-f", str(tmp_path / "vm.yaml"))
    assert f"{tmp_path}/vm.yaml: line 11: cpu is unknown; did you mean cpus?" in told
    (tmp_path / "vm.yaml").write_text("name: web\ncpus: 2\n")
    told = refused(site, 2, "apply", "-f", str(tmp_path / "vm.yaml"))
    assert "line 2: web is to be created: --memory and --disk are missing" in told
    assert "cannot be read" in refused(site, 2, "diff", "-f", str(tmp_path / "none.yaml"))
    assert site.recorded() == set() == site.claimed()


def edited(site: Site, tmp_path: Path, script: str, code: int) -> str:
    """``edit web`` with an editor that is *script*, a Python program over ``text``, which it has to set."""
    editor = tmp_path / "editor.py"
    editor.write_text(
        "import pathlib, subprocess, sys\npath = pathlib.Path(sys.argv[1])\ntext = path.read_text()\n"
        f"log = open({str(tmp_path / 'opened')!r}, 'a')\nlog.write(text + '=====')\n{script}\npath.write_text(text)\n"
    )
    process = site.spawn("edit", "web", more_env={"EDITOR": f"python3 {editor}", "VISUAL": "", "TMPDIR": str(tmp_path)})
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (code, ""), errors
    return errors


def test_edit_opens_a_mistake_again_and_notices_who_else_changed_the_instance(site: Site, tmp_path: Path) -> None:
    site.host("node", vcpus=4, memory_mib=1024, disk_gib=50)
    ok(site, QUERY, IMAGE, "--name", "web")
    kept = lambda: sorted(tmp_path.glob("eschedule-edit-web-*.yaml"))  # noqa: E731 - a question, asked often
    assert "nothing was changed" in edited(site, tmp_path, "", 0) and not kept()
    once = "text = text.replace('restart: never', 'restart: always').replace('cpus: 1', 'cpus: none' if '#!' not in text else 'cpus: 2').replace('cpus: none', 'cpus: 2' if '#!' in text else 'cpus: none')"
    assert "web: changed: cpus, restart" in edited(site, tmp_path, once, 0) and not kept()
    opened = (tmp_path / "opened").read_text().split("=====")
    assert "line 4: cpus is" in opened[-2].splitlines()[0] and "cpus: none" in opened[-2]
    assert (spec_of(site, "web").vcpus, spec_of(site, "web").restart) == (2, "always")

    assert "kept in" in edited(site, tmp_path, "text = text.replace('cpus: 2', 'cpus: 0')", 2) and len(kept()) == 1
    assert "taken out" in edited(site, tmp_path, "text = text.replace('labels: {}\\n', '')", 2)
    told = edited(site, tmp_path, "text = text.replace('name: web', 'name: other')", 2)
    assert "an instance is not renamed" in told or "there is no instance other" in told
    count = len(kept())
    other = f"subprocess.run([{str(Path('.venv/bin/eschedule').resolve())!r}, 'label', 'web', 'by=other'], cwd={str(site.directory)!r}, check=True)"
    told = edited(site, tmp_path, f"{other}; text = text.replace('restart: always', 'restart: never')", 5)
    assert "changed by somebody else meanwhile" in told and len(kept()) == count + 1
    assert (spec_of(site, "web").restart, spec_of(site, "web").labels) == ("always", {"by": "other"})
    assert "ended with 1" in edited(site, tmp_path, "sys.exit(1)", 1)
