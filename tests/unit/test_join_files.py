"""What joining writes: in which order, with which rights, what it keeps and what it refuses to touch."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from common.config import load_compute
from common.config_file import read_document
from common.errors import ConfigError, Conflict, OwnershipError
from common.join_document import JoinDocument
from ecompute import join_files
from ecompute.join_files import plan, tried_out, write
from ecompute.leave_note import LeaveNote, has_note, read_note, remove_note, write_note

HERE = JoinDocument({"endpoints": ["http://10.0.0.1:2379"], "prefix": "/etcd-compute/v1/"}, {"url": "http://10.0.0.1:8778"})
OTHER = JoinDocument({"endpoints": ["http://10.9.9.9:2379"], "prefix": "/etcd-compute/v1/"}, {"url": "http://10.0.0.1:8778"})
SECRET = JoinDocument(
    {"endpoints": ["https://10.0.0.1:2379"], "username": "hosts"}, {"url": "http://10.0.0.1:8778"},
    {"ca_file": "a CA\n", "password_file": "geheim"}, {"token_file": "token"},
)  # fmt: skip


def join(document: JoinDocument, file: Path, *, force: bool = False) -> bool:
    planned = plan(document, file)
    planned.refuse(force=force)
    with tried_out(planned) as trial:
        assert list(trial.etcd.endpoints) == document.etcd["endpoints"]
    return write(planned, force=force)


def test_a_bare_host_gets_a_file_that_loads_and_the_second_time_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "etc" / "compute.yaml"
    assert join(HERE, file)
    config = load_compute(file)
    assert (config.etcd.endpoints, config.placement.url) == (("http://10.0.0.1:2379",), "http://10.0.0.1:8778")
    before = file.stat().st_mtime_ns
    assert not join(HERE, file)
    assert file.stat().st_mtime_ns == before
    assert [path.name for path in file.parent.iterdir()] == ["compute.yaml"]


def test_a_new_configuration_leaves_the_metadata_service_to_systemd_an_old_one_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "compute.yaml"
    assert write(plan(HERE, file, has_md_server_unit=True), force=False)
    assert load_compute(file).metadata.mode == "external"
    assert not write(plan(HERE, file, has_md_server_unit=True), force=False)
    file.unlink()
    join(HERE, file)
    assert not write(plan(HERE, file, has_md_server_unit=True), force=False)
    assert load_compute(file).metadata.mode == "managed"


def test_secrets_are_files_of_root_alone(tmp_path: Path) -> None:
    file = tmp_path / "compute.yaml"
    assert join(SECRET, file) and not join(SECRET, file)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"compute.yaml": 0o644, "ca.pem": 0o644, "etcd.password": 0o600, "placement.token": 0o600}
    assert "geheim" not in file.read_text()
    config = load_compute(file)
    assert config.etcd.password_file == tmp_path / "etcd.password" and config.etcd.password_file.read_text() == "geheim"
    assert config.placement.token_file == tmp_path / "placement.token"


def test_what_an_operator_has_set_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "compute.yaml"
    file.write_text(
        "name: rack1\netcd:\n  endpoints: [http://10.0.0.1:2379]\n  deadline_seconds: 7\nplacement: {url: http://10.0.0.1:8778}\n"
        "inventory: {vcpu: {reserved: 2}}\n"
    )
    join(HERE, file)
    config = load_compute(file)
    assert (config.name, config.etcd.deadline_seconds, config.inventory.vcpu.reserved) == ("rack1", 7, 2)
    assert not join(HERE, file)


def test_another_cluster_is_not_left_without_being_told_to(tmp_path: Path) -> None:
    file = tmp_path / "compute.yaml"
    join(SECRET, file)
    text = {path: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(Conflict, match=r"etcd.endpoints.*--force"):
        join(OTHER, file)
    assert {path: path.read_text() for path in tmp_path.iterdir()} == text
    join(OTHER, file, force=True)
    document = read_document(file)
    assert document["etcd"] == OTHER.etcd and document["placement"] == OTHER.placement
    assert (tmp_path / "compute.yaml.bak").read_text() == text[file]


def test_a_password_that_changed_is_told_and_replaced_only_by_force(tmp_path: Path) -> None:
    file = tmp_path / "compute.yaml"
    join(SECRET, file)
    changed = JoinDocument(SECRET.etcd, SECRET.placement, {**SECRET.etcd_files, "password_file": "neu"}, SECRET.placement_files)
    with pytest.raises(Conflict, match=r"etcd\.password"):
        join(changed, file)
    join(changed, file, force=True)
    assert (tmp_path / "etcd.password").read_text() == "neu"
    assert stat.S_IMODE((tmp_path / "etcd.password.bak").stat().st_mode) == 0o600


def test_a_file_as_it_is_shipped_says_nothing_unless_guests_were_built_by_it(tmp_path: Path) -> None:
    file, state = tmp_path / "compute.yaml", tmp_path / "state"
    shipped = Path("compute.yaml").read_text().replace("/var/lib/etcd-compute", str(state))
    file.write_text(shipped)
    (state / "instances" / "a-guest").mkdir(parents=True)
    with pytest.raises(Conflict):
        join(OTHER, file)
    (state / "instances" / "a-guest").rmdir()
    assert join(OTHER, file)
    assert load_compute(file).paths.state_dir == state
    assert (tmp_path / "compute.yaml.bak").read_text() == shipped


def test_a_crash_between_the_files_leaves_no_configuration_that_names_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "compute.yaml"
    real, left = join_files._replace, [0]

    def killed(path: Path, text: str, mode: int) -> None:
        if not left[0]:
            raise SystemExit
        left[0] -= 1
        real(path, text, mode)

    for written_before in range(4):
        left[0] = written_before
        monkeypatch.setattr(join_files, "_replace", killed)
        with pytest.raises(SystemExit):
            join(SECRET, file)
        assert not file.exists()
    monkeypatch.setattr(join_files, "_replace", real)
    assert join(SECRET, file)
    assert load_compute(file).etcd.username == "hosts"


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "compute.yaml"
    for text in ("etcd: [", "etcd: http://10.0.0.1:2379\n", "colour: blue\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"compute\.yaml"):
            join(HERE, file)
        assert file.read_text() == text


def test_the_note_of_leaving_stays_until_it_is_removed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert read_note(state) is None and not has_note(state)
    remove_note(state)
    write_note(state, LeaveNote("ada@control", "2026-01-02T03:04:05Z"))
    write_note(state, LeaveNote("ada@control", "2026-01-02T03:04:05Z", is_done=True))
    assert read_note(state) == LeaveNote("ada@control", "2026-01-02T03:04:05Z", is_done=True)
    (state / "left.json").write_text("{")
    with pytest.raises(OwnershipError, match="ecompute join"):
        read_note(state)
    remove_note(state)
    assert read_note(state) is None
