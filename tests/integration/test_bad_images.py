"""Each image that cannot be used, through the real programs: the request ends with a reason of its own, and leaves nothing."""

from __future__ import annotations

import gzip
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

from tests.support.deployment import Deployment, make_raw_image
from tests.support.disk_images import make_qcow2, qemu_img, sha256
from tests.support.image_server import ImageServer, body, status
from tests.support.processes import free_port

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:64"


@contextmanager
def image_server(tls: ssl.SSLContext | None = None) -> Iterator[ImageServer]:
    made = ImageServer(tls)
    try:
        yield made
    finally:
        made.close()


def with_certificate_of_nobody(directory: Path) -> ssl.SSLContext:
    key, certificate = directory / "key.pem", directory / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.fixture
def bad_urls(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """Addresses of one image each that cannot be used, by what is wrong with it."""
    good = make_raw_image(tmp_path / "good.raw")
    packed = gzip.compress(good.read_bytes())
    base, other = make_qcow2(tmp_path / "base.qcow2"), tmp_path / "other.raw"
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", tmp_path / "backed.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={other},data_file_raw=on", tmp_path / "external.qcow2", "4M")
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "large.qcow2", "5G")
    qemu_img("create", "-q", "-f", "vmdk", tmp_path / "huge.vmdk", "5000G")
    with ExitStack() as servers:
        plain = servers.enter_context(image_server())
        secure = servers.enter_context(image_server(with_certificate_of_nobody(tmp_path)))
        plain.answers.update(
            {
                "/page": body(b"<!DOCTYPE html><html>log in</html>"),
                "/noise": body(bytes(range(256)) * 64),
                "/cut-off": body(good.read_bytes()[: 1 << 20], length=good.stat().st_size),
                "/packed-cut-off": body(packed[: len(packed) // 2]),
                "/to-a-file": status(302, Location=f"file://{good}"),
                "/busy": status(503),
                "/good": body(good.read_bytes()),
            }
        )
        secure.answers["/good"] = body(good.read_bytes())
        yield {
            "gone": f"{plain.base}/none",
            "silent": f"http://127.0.0.1:{free_port()}/x",
            "untrusted": f"{secure.base}/good",
            "backed": str(tmp_path / "backed.qcow2"),
            "external": str(tmp_path / "external.qcow2"),
            "large": str(tmp_path / "large.qcow2"),
            "huge": str(tmp_path / "huge.vmdk"),
            "directory": str(tmp_path),
            "other-bytes": f"{plain.base}/good",
            **{name[1:]: f"{plain.base}{name}" for name in plain.answers if name != "/good"},
        }


# What is wrong: the reason, and words of the message.
EXPECTED = {
    "gone": ("ImageNotFound", "404"),
    "silent": ("AttemptsExhausted", "refused"),
    "untrusted": ("ImageTlsFailed", "certificate"),
    "page": ("ImageInvalid", "HTML page"),
    "noise": ("ImageInvalid", "neither a qcow2 header nor a partition table"),
    "cut-off": ("AttemptsExhausted", "of 4194304 bytes"),
    "packed-cut-off": ("ImageInvalid", "cut off"),
    "to-a-file": ("ImageNotFound", "other than http or https"),
    "busy": ("AttemptsExhausted", "503"),
    "backed": ("ImageInvalid", "backing file"),
    "external": ("ImageInvalid", "another file"),
    "large": ("InvalidSpec", "DISK_GB:5"),
    "huge": ("ImageTooLarge", "max_size_gib"),
    "directory": ("ImageNotFound", "no regular file"),
    "other-bytes": ("ChecksumMismatch", "as asked for"),
}


def test_each_says_what_is_wrong_with_it_and_leaves_nothing(
    local_deployment: Deployment, bad_urls: Mapping[str, str], tmp_path: Path
) -> None:
    deployment = local_deployment
    deployment.stop_ecompute()
    config = yaml.safe_load(deployment.compute_file.read_text())
    config |= {"images": {"fetch_timeout_seconds": 1}, "builder": {"max_attempts": 1}}
    deployment.compute_file.write_text(yaml.safe_dump(config))
    deployment.start_ecompute()
    deployment.wait_ready()
    assert set(bad_urls) == set(EXPECTED)
    for name, url in bad_urls.items():
        checksum = ["--checksum", f"sha256:{'0' * 64}"] if name == "other-bytes" else []
        answer = deployment.eschedule(REQUEST, url, "--name", name, *checksum, check=False)
        found = deployment.show(name)["status"]
        reason, words = EXPECTED[name]
        said = f"{name}: {answer.returncode} {found['phase']} {found['reason']} {found['message']}\n{answer.stderr}"
        assert (answer.returncode, found["phase"], found["reason"]) == (1, "Failed", reason), said
        assert words in found["message"] and reason in answer.stderr, said
        assert deployment.allocations() == {}, said
        assert deployment.files() == [], said
        # The image itself is well where only the request is too small for it.
        left = [path.name for path in (tmp_path / "state/images").glob("*.*")]
        assert left == ([f"{sha256(tmp_path / 'large.qcow2')}.qcow2"] if found["reason"] == "InvalidSpec" else []), said
        for path in (tmp_path / "state/images").glob("*.qcow2"):
            path.unlink()
    deployment.eschedule("destroy", *bad_urls)
    deployment.assert_nothing_is_left()
