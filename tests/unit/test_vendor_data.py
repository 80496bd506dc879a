"""What the operator gives to every guest of a host: read once, bounded, and in each guest's document."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path

import pytest

from common.config import load_compute
from common.errors import ConfigError
from common.model import ConfigDrive, InstanceSpec
from ecompute.main import main
from ecompute.vendor_data import read_vendor_data
from tests.support.loop import Loop

TEXT = "#cloud-config\npackages: [nfs-common]  # für alle\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vendor-data"
    path.write_text(TEXT)
    return path


def configuration(tmp_path: Path, file: Path) -> Path:
    path = tmp_path / "compute.yaml"
    path.write_text(f"metadata: {{vendor_data_file: {file}}}\n")
    return path


def test_it_is_read_as_it_is(file: Path) -> None:
    assert read_vendor_data(file) == base64.b64encode(TEXT.encode()).decode()
    assert read_vendor_data(None) is None


def test_sixty_four_kibibytes_are_taken_and_not_a_byte_more(file: Path) -> None:
    file.write_bytes(b"#" * 65536)
    assert read_vendor_data(file)
    file.write_bytes(b"#" * 65537)
    with pytest.raises(ConfigError, match=r"vendor_data_file is .* more than 65536 bytes"):
        read_vendor_data(file)


def test_what_is_no_text_is_refused(file: Path) -> None:
    file.write_bytes(b"#cloud\xff")
    with pytest.raises(ConfigError, match=r"is no UTF-8 text \(byte 7\); needs what cloud-init reads"):
        read_vendor_data(file)


def test_the_configuration_names_a_file_that_is_there(tmp_path: Path, file: Path) -> None:
    assert load_compute(configuration(tmp_path, file)).metadata.vendor_data_file == file
    with pytest.raises(ConfigError, match=r"metadata.vendor_data_file is .*gone, which cannot be read: No such file"):
        load_compute(configuration(tmp_path, tmp_path / "gone"))
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match="which is empty"):
        load_compute(configuration(tmp_path, file))
    file.write_bytes(b"#" * 65537)
    with pytest.raises(ConfigError, match="more than 65536 bytes"):
        load_compute(configuration(tmp_path, file))


def test_a_check_of_the_configuration_looks_into_it(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = configuration(tmp_path, file)
    assert main(["--config", str(path), "--check-config"]) == 0
    assert f"metadata.vendor_data_file = {file}" in capsys.readouterr().out
    file.write_bytes(b"\xff")
    assert main(["--config", str(path), "--check-config"]) == 2
    assert "is no UTF-8 text (byte 1)" in capsys.readouterr().err


def test_a_restart_with_another_one_reaches_the_documents_of_running_guests(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    spec = loop.request(config_drive=ConfigDrive.OPENSTACK)
    loop.settle(spec)
    assert document_vendor_data(loop, spec) is None
    changed = dataclasses.replace(loop.world.blueprint, vendor_data_base64=base64.b64encode(TEXT.encode()).decode())
    loop.restart(blueprint=changed)
    loop.settle(spec)
    assert document_vendor_data(loop, spec) == TEXT.encode()


def document_vendor_data(loop: Loop, spec: InstanceSpec) -> bytes | None:
    document = loop.world.metadata.read(spec.uuid)
    assert document is not None
    return None if document.vendor_data_base64 is None else base64.b64decode(document.vendor_data_base64)
