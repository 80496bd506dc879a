"""What a configuration file may say, and that everything wrong with it is said at once."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from common.config import ComputeConfig, ResourceConfig, ScheduleConfig, describe, load_compute, load_schedule
from common.config_file import dotted, find_file, key_paths, search_directories
from common.errors import ConfigError
from common.schemas import COMPUTE, SCHEDULE
from tests.support.processes import ROOT

LOADERS = {"compute": (load_compute, ComputeConfig(), COMPUTE), "schedule": (load_schedule, ScheduleConfig(), SCHEDULE)}


@pytest.fixture
def compute(tmp_path: Path):
    """Write compute.yaml and load it."""

    def write(text: str, **environment: str) -> ComputeConfig:
        path = tmp_path / "compute.yaml"
        path.write_text(text, encoding="utf-8")
        return load_compute(path, environment={"HOME": str(tmp_path), **environment})

    return write


@pytest.fixture
def schedule(tmp_path: Path):
    def write(text: str) -> ScheduleConfig:
        path = tmp_path / "schedule.yaml"
        path.write_text(text, encoding="utf-8")
        return load_schedule(path, environment={"HOME": str(tmp_path)})

    return write


@pytest.fixture
def faults(tmp_path: Path):
    """The lines of the error that a configuration gives, without the file's name, which each must begin with."""

    def lines(text: str, kind: str = "compute") -> list[str]:
        path = tmp_path / f"{kind}.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            LOADERS[kind][0](path, environment={"HOME": str(tmp_path)})
        result = str(caught.value).split("\n")
        assert all(line.startswith(f"{path}: ") and line.isprintable() for line in result), result
        return [line.removeprefix(f"{path}: ") for line in result]

    return lines


# -- samples -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOADERS)
def test_the_sample_file_holds_the_defaults(kind):
    load, defaults, _ = LOADERS[kind]
    sample = load(ROOT / f"{kind}.yaml")
    assert sample.source == ROOT / f"{kind}.yaml"
    assert dataclasses.replace(sample, source=None) == defaults


@pytest.mark.parametrize("kind", LOADERS)
def test_the_sample_file_has_every_key_and_a_comment_to_each_section(kind):
    text = (ROOT / f"{kind}.yaml").read_text(encoding="utf-8")

    def paths(value: Any, path: tuple[str, ...] = ()):
        for key, inner in value.items() if isinstance(value, dict) else ():
            yield (*path, key)
            yield from paths(inner, (*path, key))

    assert set(paths(yaml.safe_load(text))) == set(key_paths(LOADERS[kind][2]))


@pytest.mark.parametrize("kind", LOADERS)
def test_the_schema_and_the_dataclasses_have_the_same_keys(kind):
    _, defaults, schema = LOADERS[kind]
    lines = describe(defaults)
    described = {line.split(" = ")[0] for line in lines[1:]}
    leaves = {
        dotted(path) for path in key_paths(schema) if not any(p[: len(path)] == path and p != path for p in key_paths(schema))
    }
    assert described == leaves

    def fields(config: Any, prefix: str = ""):
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            yield from fields(value, f"{prefix}{field.name}.") if dataclasses.is_dataclass(value) else [f"{prefix}{field.name}"]

    compute_only = {"etcd.lease_ttl_seconds", "etcd.heartbeat_every_seconds"} if kind == "schedule" else set()
    assert set(fields(defaults)) - {"source"} - compute_only == leaves


# -- where it is looked for ----------------------------------------------------------------------------------------------


def test_search_goes_from_here_to_the_user_to_the_machine():
    assert search_directories({"HOME": "/home/ann"}) == (
        Path(),
        Path("/home/ann/.config/etcd-compute"),
        Path("/etc/etcd-compute"),
    )
    assert search_directories({}) == (Path(), Path("/etc/etcd-compute"))


def test_the_first_file_found_is_used_alone(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for directory, name in ((first, "one"), (second, "two")):
        directory.mkdir()
        (directory / "compute.yaml").write_text(f"name: {name}\n", encoding="utf-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    config = load_compute(directories=(empty, first, second))
    assert (config.name, config.source) == ("one", first / "compute.yaml")
    assert find_file("schedule.yaml", (empty, first, second)) is None


def test_the_working_directory_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schedule.yaml").write_text("policy: pack\n", encoding="utf-8")
    config = load_schedule(environment={"HOME": "/nonexistent"})
    assert (config.policy, config.source) == ("pack", tmp_path / "schedule.yaml")


@pytest.mark.parametrize("kind", LOADERS)
def test_without_any_file_all_is_default(kind, tmp_path):
    load, defaults, _ = LOADERS[kind]
    assert load(directories=(tmp_path,)) == defaults
    assert defaults.source is None


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "etcd:\nlog:\ninventory:\n  vcpu:\n", "\ufeff"])
def test_an_empty_file_or_section_is_all_defaults(compute, text):
    assert dataclasses.replace(compute(text), source=None) == ComputeConfig()


# -- files that cannot be read -------------------------------------------------------------------------------------------


def _one_line(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_compute(path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def test_a_named_file_that_is_not_there_is_one_line(tmp_path):
    assert "no such file" in _one_line(tmp_path / "none.yaml")


def test_a_directory_is_one_line(tmp_path):
    assert _one_line(tmp_path) == "is no file; name one with --config, or leave that out"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert _one_line(tmp_path / "pipe").startswith("is no file; ")


def test_a_link_in_a_circle_is_one_line(tmp_path):
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    assert _one_line(tmp_path / "loop.yaml")


def test_a_huge_file_is_one_line(tmp_path):
    path = tmp_path / "huge.yaml"
    path.write_bytes(b"#" * 2_000_000)
    assert "larger than" in _one_line(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "line 1 is not UTF-8"),
        (b"a: 1\nb: \xe9\n", "line 2 is not UTF-8"),
        (b"- a\n- b\n", "is a list, needs to be a mapping"),
        (b"hello\n", 'is "hello", needs to be a mapping'),
        (b"etcd: [1, 2\n", "not YAML"),
        (b"etcd:\n\tprefix: x\n", "line 2, column 1: not YAML"),
        (b"a: 1\n---\nb: 2\n", "not YAML"),
        (b"a: \x00\n", "not YAML"),
        (b"name: &x h1\nuuid: *x\n", "aliases (*name) are not used"),
        (b"name: !!python/object:os.system h1\n", "tags (!name) are not used"),
        (b"[" * 5000, "nested too deeply"),
    ],
)
def test_what_is_no_mapping_in_yaml_is_one_line(tmp_path, content, said):
    path = tmp_path / "compute.yaml"
    path.write_bytes(content)
    assert said in _one_line(path)


@given(st.binary(max_size=60) | st.text("abc:-[]{}&*!|>'\"%@#?,\n\t 01.e~", max_size=60).map(str.encode))
def test_no_content_gives_another_exception(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    try:
        load_compute(path)
    except ConfigError as error:
        assert all(line.isprintable() for line in str(error).split("\n"))


# -- values --------------------------------------------------------------------------------------------------------------


def test_values_become_their_types_and_leave_the_other_defaults(compute, tmp_path):
    config = compute(
        """
        uuid: 11111111-2222-3333-4444-555555555555
        etcd: {endpoints: ["http://a:2379", "http://[::1]:2379"], lease_ttl_seconds: 60.0, deadline_seconds: 2}
        inventory: {memory_mb: {allocation_ratio: 2}}
        paths: {state_dir: /srv/state}
        metadata: {mode: off}
        network: {filter: null}
        builder: {workers: 8}
        """
    )
    assert config.uuid == UUID("11111111-2222-3333-4444-555555555555")
    assert config.etcd.endpoints == ("http://a:2379", "http://[::1]:2379")
    assert (config.etcd.lease_ttl_seconds, type(config.etcd.lease_ttl_seconds)) == (60, int)
    assert (config.etcd.deadline_seconds, type(config.etcd.deadline_seconds)) == (2.0, float)
    assert config.inventory.memory_mb == ResourceConfig(reserved=512, allocation_ratio=2.0)
    assert config.paths.state_dir == Path("/srv/state")
    assert config.paths.run_dir == ComputeConfig().paths.run_dir
    assert config.metadata.mode == "off"
    assert config.network.filter is None
    assert config.builder.workers == 8


def test_a_tilde_is_the_home_of_the_environment(schedule, tmp_path):
    (tmp_path / "id.pub").write_text("ssh-ed25519 AAAA\n", encoding="utf-8")
    assert schedule("defaults: {key_files: [~/id.pub]}").defaults.key_files == (tmp_path / "id.pub",)


def test_the_test_driver_has_its_own_virt_type(compute):
    config = compute("libvirt: {uri: 'test:///default', virt_type: test}")
    assert config.libvirt.virt_type == "test"


# -- faults --------------------------------------------------------------------------------------------------------------


def test_all_faults_are_said_at_once(faults):
    assert faults(
        """
        etcd: {lease_ttl: 4, lease_ttl_seconds: 10, prefix: nope}
        metadata: {mode: of, port: 70000}
        state_dir: /x
        libvirt: {virt_type: test}
        """
    ) == [
        "state_dir is unknown; did you mean paths.state_dir?",
        "etcd.lease_ttl is unknown; did you mean lease_ttl_seconds?",
        'etcd.prefix is "nope", needs a path that begins and ends with /, such as /etcd-compute/v1/',
        'metadata.mode is "of", needs one of managed, external, off',
        "metadata.port is 70000, needs a whole number from 1 to 65535",
        "etcd.lease_ttl_seconds is 10, needs >= 20 (heartbeat_every_seconds + 2 * deadline_seconds)",
        'libvirt.virt_type is test, which only works with a test:/// URI, and libvirt.uri is "qemu:///system"; '
        "needs one of auto, kvm, qemu",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("etcd: 3", "etcd is 3, needs a mapping with any of endpoints"),
        ("etcd: {endpoints: []}", "etcd.endpoints is an empty list, needs a list, not empty and without repeats"),
        ("etcd: {endpoints: http://a:1}", 'etcd.endpoints is "http://a:1", needs a list'),
        ("etcd: {endpoints: [http://a:1, http://a:1]}", "without repeats"),
        ("etcd: {endpoints: [ftp://a:1]}", "etcd.endpoints[0] is"),
        ("etcd: {endpoints: [http://a]}", "etcd.endpoints[0] is"),
        ("etcd: {endpoints: ['http://a:1/x']}", "needs http://HOST:PORT and no path"),
        ("etcd: {endpoints: ['http://a:99999']}", "no URL"),
        ("etcd: {endpoints: ['http://[a:1']}", "no URL"),
        ("etcd: {endpoints: ['a:2379']}", "needs http:// or https://"),
        ("etcd: {endpoints: [http://a:1, https://b:1]}", "both http:// and https://"),
        ("etcd: {endpoints: [https://a:1]}", "etcd.ca_file is not set"),
        ("etcd: {prefix: /}", "etcd.prefix is"),
        ("etcd: {prefix: /a//}", "etcd.prefix is"),
        ("etcd: {prefix: /a b/}", "etcd.prefix is"),
        ('etcd: {prefix: "/a/\\n"}', "etcd.prefix has control characters"),
        ("etcd: {username: root}", "etcd.username is set without password_file"),
        ("etcd: {password_file: /none}", "etcd.password_file is set without username"),
        ("etcd: {certificate_file: /none}", "etcd.certificate_file is set without key_file"),
        ("etcd: {key_file: /none}", "etcd.key_file is set without certificate_file"),
        ("etcd: {ca_file: /none}", "etcd.ca_file is /none, which cannot be read: No such file or directory"),
        ("etcd: {ca_file: ca.pem}", "needs the path of a file, absolute or beginning with ~/"),
        ("etcd: {ca_file: /etc}", "which is no file"),
        ("etcd: {ca_file: /etc/passwd}", "would be used unencrypted"),
        ("etcd: {deadline_seconds: 0}", "needs a number from 0.05"),
        ("etcd: {deadline_seconds: .nan}", 'etcd.deadline_seconds is ".nan", needs a number'),
        ("etcd: {deadline_seconds: 1e400}", "needs a number from"),
        ("etcd: {deadline_seconds: true}", "etcd.deadline_seconds is true"),
        ("etcd: {deadline_seconds: 010}", 'is "010", needs a number'),
        ("etcd: {deadline_seconds: 0:10}", 'is "0:10", needs a number'),
        ("etcd: {deadline_seconds: }", "is empty (null), needs a number"),
        ("etcd: {lease_ttl_seconds: 30.5}", "needs a whole number"),
        ("etcd: {heartbeat_every_seconds: 21}", "etcd.lease_ttl_seconds is 30, needs >= 31 ("),
        ("placement: {url: 'http://'}", "placement.url is"),
        ("placement: {url: 'http://p?x=1'}", "placement.url is"),
        ("placement: {timeout_seconds: 31}", "placement.deadline_seconds is 30, needs >= 31"),
        ("placement: {token_file: /none}", "placement.token_file is /none"),
        ("placement: {project_id: 12}", "placement.project_id is 12, needs a uuid or null; put it in quotes"),
        ("uuid: abc", 'uuid is "abc", needs a uuid or null'),
        ("name: 17", "name is 17, needs a host name or null; put it in quotes"),
        ("name: a b", 'name is "a b", needs a host name or null'),
        ("libvirt: {virt_type: xen}", "needs one of auto, kvm, qemu, test"),
        ("libvirt: {uri: 'qemu+ssh://h/system'}", "needs the URI of a libvirt on this machine"),
        ("libvirt: {uri: 'test:///default'}", "libvirt.virt_type is auto, needs test"),
        ("libvirt: {uri: 'test:///default', virt_type: kvm}", "libvirt.virt_type is kvm, needs test"),
        ("inventory: {vcpu: {allocation_ratio: 0}}", "inventory.vcpu.allocation_ratio is 0, needs a number > 0"),
        ("inventory: {disk_gb: {reserved: -1}}", "inventory.disk_gb.reserved is -1, needs a whole number from 0"),
        ("inventory: {vcpu: 4}", "inventory.vcpu is 4, needs a mapping"),
        ("inventory: {VCPU: {reserved: 1}}", "did you mean vcpu?"),
        ("paths: {state_dir: relative}", "needs an absolute path"),
        ("paths: {state_dir: /}", "needs an absolute path"),
        ("paths: {state_dir: /run/etcd-compute/}", "the same as state_dir"),
        ("metadata: {address: 1.2.3.400}", "needs an IPv4 address"),
        ("metadata: {port: 0}", "needs a whole number from 1 to 65535"),
        ("metadata: {bridge: much-too-long-a-name}", "at most 15 characters"),
        ("builder: {workers: 0}", "needs a whole number from 1 to 256 or null"),
        ("log: {level: verbose}", "needs one of debug, info, warning, error"),
        ("wholly_different: 1", "is unknown; known here: name, uuid, etcd"),
        ("name: a\nname: b", "name is given twice, in lines 1 and 2; keep one"),
        ("etcd:\n  prefix: /a/\n  prefix: /a/", "etcd.prefix is given twice, in lines 2 and 3"),
        ("1: x", "line 1: a key is no text"),
        ("? [a]\n: x", "a key is no text"),
        ('"a\\nb": x', "a\\nb is unknown"),
    ],
)
def test_a_fault_is_one_line_that_says_what_is_allowed(faults, text, said):
    lines = faults(text)
    assert any(said in line for line in lines), lines


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("etcd: {lease_ttl_seconds: 30}", "etcd.lease_ttl_seconds is unknown"),
        ("policy: best", 'policy is "best", needs one of spread, pack, random'),
        ("candidates_limit: 0", "needs a whole number from 1"),
        ("wait_seconds: -1", "needs a number from 0"),
        ("defaults: {image: ./debian.img}", 'defaults.image: image "./debian.img" is a path on this machine'),
        ("defaults: {restart: no}", "needs one of never, on-failure, always"),
        ("defaults: {key_files: [/none.pub]}", "defaults.key_files[0] is /none.pub, which cannot be read"),
        ("defaults: {key_files: [id.pub]}", 'defaults.key_files[0] is "id.pub", needs the path of a file'),
        ("defaults: {network: 'a b'}", "needs the name of a network"),
    ],
)
def test_a_fault_of_schedule_yaml_is_one_line(faults, text, said):
    lines = faults(text, "schedule")
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.parametrize(
    "text",
    [
        "etcd: {password: hunter2}",
        "etcd: {endpoints: ['http://root:hunter2@a:2379']}",
        "etcd: {endpoints: ['ftp://root:hunter2@a']}",
        "etcd: {endpoints: ['http://root:hunter2@[a']}",
        "placement: {url: 'http://root:hunter2@p'}",
        "placement: {token: hunter2}",
    ],
)
def test_a_password_in_the_wrong_place_is_not_repeated(faults, text):
    assert not any("hunter2" in line for line in faults(text))


def test_files_with_secrets_must_not_be_open_to_everyone(compute, faults, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n", encoding="utf-8")
    text = f"etcd: {{username: root, password_file: {secret}}}\nplacement: {{token_file: {secret}}}"
    secret.chmod(0o644)
    lines = faults(text)
    assert [line.split(",")[0] for line in lines] == [f"etcd.password_file is {secret}", f"placement.token_file is {secret}"]
    assert all(f"open to everyone (mode 0644); chmod o-rwx {secret}" in line for line in lines)
    secret.chmod(0o640)
    assert compute(text).etcd.password_file == secret


def test_an_empty_password_file_is_a_fault(faults, tmp_path):
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    assert faults(f"placement: {{token_file: {secret}}}") == [f"placement.token_file is {secret}, which is empty"]


def test_https_with_all_its_files(compute, tmp_path):
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text("PEM", encoding="utf-8")
        (tmp_path / name).chmod(0o600)
    config = compute("etcd: {endpoints: [https://a:2379], ca_file: ~/ca, certificate_file: ~/cert, key_file: ~/key}")
    assert config.etcd.key_file == tmp_path / "key"


@pytest.mark.parametrize("listen", ["127.0.0.1:9179", "[::1]:1", "0.0.0.0:65535", "host-1.example:9179", None])
def test_where_metrics_may_listen(compute, listen):
    assert compute(yaml.safe_dump({"metrics": {"listen": listen}})).metrics.listen == listen


@pytest.mark.parametrize("listen", ["9179", ":9179", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "::1:9179", "http://a:1"])
def test_where_metrics_may_not_listen(faults, listen):
    assert faults(yaml.safe_dump({"metrics": {"listen": listen}})) == [
        f'metrics.listen is "{listen}", needs HOST:PORT, such as 127.0.0.1:9179, or null'
    ]


def test_a_check_between_keys_is_silent_about_a_key_that_failed_itself(faults):
    assert faults("etcd: {deadline_seconds: abc, lease_ttl_seconds: 3}") == [
        'etcd.deadline_seconds is "abc", needs a number from 0.05 to 3600'
    ]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["off", "~/x", "/x"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(sorted({p[-1] for p in key_paths(COMPUTE)})) | st.text(max_size=5), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_no_document_gives_another_exception(tmp_path_factory, document):
    path = tmp_path_factory.getbasetemp() / "document.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    for load in (load_compute, load_schedule):
        try:
            load(path, environment={})
        except ConfigError as error:
            assert all(line.startswith(f"{path}: ") and line.isprintable() for line in str(error).split("\n"))


# -- describe ------------------------------------------------------------------------------------------------------------


def test_describe_shows_values_defaults_and_only_the_names_of_secret_files(compute, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n", encoding="utf-8")
    secret.chmod(0o600)
    lines = describe(compute(f"name: h1\netcd: {{username: root, password_file: {secret}}}"))
    assert lines[0] == f"# {tmp_path}/compute.yaml"
    assert "name = h1" in lines
    assert f"etcd.password_file = {secret}" in lines
    assert "etcd.deadline_seconds = 5  (default)" in lines
    assert "etcd.endpoints = [http://127.0.0.1:2379]  (default)" in lines
    assert not any("hunter2" in line for line in lines)


def test_describe_says_when_there_was_no_file():
    lines = describe(ScheduleConfig())
    assert re.match("# no file was found", lines[0])
    assert not any("lease_ttl" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("disk: {preallocation: falloc, discard: ignore}", "disk.preallocation is falloc, and an overlay has nothing to take ahead; needs disk.mode: copy or raw"),
        ("disk: {mode: raw, preallocation: metadata}", "disk.preallocation is metadata, which raw disks do not have; needs off, falloc or full"),
        ("disk: {mode: raw, preallocation: full}", "disk.discard is unmap, which gives back what disk.preallocation: full has taken; needs ignore"),
        ("disk: {aio: native}", "disk.aio is native, which works around the host's cache only, and disk.cache is writeback; needs disk.cache: none or directsync"),
        ("disk: {discard: ignore, detect_zeroes: unmap}", "disk.detect_zeroes is unmap, and disk.discard is ignore; needs disk.discard: unmap, or detect_zeroes: on"),
        ("disk: {cache: unsafe}", "disk.cache is \"unsafe\", needs one of writeback, none, writethrough, directsync"),
        ("images: {prefetch: [./x.qcow2]}", None),
        ("images: {max_cache_gib: 0}", None),
    ],
)  # fmt: skip
def test_disks_that_qemu_would_refuse_are_refused_here(text: str, said: str | None, faults) -> None:
    (line,) = faults(text)
    assert said is None or line == said
    assert line.startswith(text.partition(":")[0])


@pytest.mark.parametrize(
    "text",
    [
        "disk: {mode: raw, preallocation: falloc, discard: ignore, cache: none, aio: native}",
        "disk: {mode: copy, preallocation: metadata, cache: directsync, aio: native, detect_zeroes: unmap}",
        "disk: {preallocation: off, aio: io_uring, detect_zeroes: on}",
        "images: {prefetch: [debian-12, https://images.example.org/a.qcow2, /srv/a.raw], max_cache_gib: 50, evict_after_days: 0.5}",
    ],
)
def test_disks_that_qemu_takes_are_taken(text: str, compute) -> None:
    assert compute(text).source is not None
