"""The registry of images through the program: a real HTTP server with sums, real etcd and Placement; hosts are stand-ins."""

from __future__ import annotations

import hashlib
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.errors import ConfigError, Transient
from common.hardware import DiskBus, Hardware
from common.image_records import ImageRecord
from common.model import InstanceSpec
from eschedule import changes, sums_fetch
from tests.support.deployment import Deployment, make_raw_image
from tests.support.eschedule import QUERY, Site

IMAGE = b"an image"
SHA256, SHA512 = hashlib.sha256(IMAGE).hexdigest(), hashlib.sha512(IMAGE).hexdigest()
FILES = {
    "/debian.qcow2": IMAGE,
    "/SHA512SUMS": f"{'0' * 128}  other.qcow2\n{SHA512}  debian.qcow2\n".encode(),
    "/CHECKSUM": f"SHA256 (debian.qcow2) = {SHA256}\n".encode(),
    "/twice": f"{SHA256}  debian.qcow2\n{'0' * 64}  debian.qcow2\n".encode(),
    "/others": f"{SHA256}  other.qcow2\n".encode(),
    "/binary": bytes(range(256)),
    "/huge": b"x" * (sums_fetch.MOST_BYTES + 1),
}


class Web:
    """A server of FILES, and of answers that are none."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.asked: list[str] = []
        self.redirects: dict[str, str] = {}
        self.files = FILES
        self._released = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(self.path)
                if self.path in web.redirects:
                    self.send_response(302)
                    self.send_header("Location", web.redirects[self.path])
                    self.end_headers()
                elif self.path == "/drips":
                    self.send_response(200)
                    self.end_headers()
                    while not web._released.wait(0.05):
                        self.wfile.write(b"a")
                elif self.path == "/short":
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(FILES["/SHA512SUMS"])
                elif self.path in web.files:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(web.files[self.path])))
                    self.end_headers()
                    self.wfile.write(web.files[self.path])
                else:
                    self.send_error(503 if self.path == "/busy" else 404)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] - clients that hang up
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.close()


@pytest.fixture
def https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """As *web*, by TLS, with a certificate that this machine trusts by its environment."""
    file = tmp_path / "server.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", file, "-out", tmp_path / "ca.pem"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    file.write_bytes(file.read_bytes() + (tmp_path / "ca.pem").read_bytes())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    made = Web(file)
    yield made
    made.close()


def refused(site: Site, code: int, *arguments: str) -> str:
    """The one line that the program says as it refuses *arguments* with exit code *code*."""
    answer = site.run(*arguments)
    assert (answer.returncode, answer.stdout) == (code, ""), answer.stderr
    *_, last = answer.stderr.splitlines()
    assert last.startswith("eschedule: ")
    return last


def add(site: Site, web: Web, name: str = "debian-12", *options: str) -> None:
    answer = site.run("image", "add", name, f"{web.url}/debian.qcow2", "--checksum-url", "SHA512SUMS", *options)
    assert answer.returncode == 0, answer.stderr


def spec_of(site: Site, name: str) -> InstanceSpec:
    return changes.read(site.store, site.keys, site.uuid_of(name)).spec


class TestRegistry:
    def test_an_image_is_added_listed_shown_and_removed(self, site: Site, web: Web) -> None:
        add(site, web, "debian-12", "--min-disk", "3", "--user", "debian", "--property", "os_distro=debian")
        assert web.asked == ["/SHA512SUMS"], "the image itself is the hosts' to fetch"
        item = site.store.get(site.keys.image("debian-12"))
        assert item is not None
        record = ImageRecord.from_json(item.value)
        assert (record.checksum, record.checksum_url) == (f"sha512:{SHA512}", f"{web.url}/SHA512SUMS")
        assert site.run("image", "list").stdout.splitlines()[1].split()[:3] == ["debian-12", "3", "debian"]
        shown = site.run("image", "show", "debian-12").stdout
        assert SHA512 in shown and "os_distro=debian" in shown
        assert json.loads(site.run("image", "show", "debian-12", "--json").stdout)["user"] == "debian"
        assert [row["name"] for row in json.loads(site.run("image", "list", "--json").stdout)] == ["debian-12"]
        assert site.run("audit").returncode == 0
        assert site.run("image", "rm", "debian-12").returncode == 0
        assert site.store.get(site.keys.image("debian-12")) is None
        assert "there is no image debian-12" in refused(site, 1, "image", "rm", "debian-12")

    def test_a_name_never_changes_what_it_means(self, site: Site, web: Web) -> None:
        add(site, web)
        shown = site.run("image", "show", "debian-12").stdout
        again = site.run("image", "add", "debian-12", f"{web.url}/debian.qcow2", "--sha512", SHA512)
        assert again.returncode == 0, "where its checksum was read is only for people"
        assert again.stdout == shown, "who registered it, and when, is told as it is"
        same = site.run("image", "add", "debian-12", f"{web.url}/debian.qcow2", "--checksum-url", f"{web.url}/SHA512SUMS")
        assert same.returncode == 0 and "is there already, just so" in same.stderr
        said = refused(site, 5, "image", "add", "debian-12", "/srv/other", "--sha256", SHA256)
        assert "there is an image debian-12 already, and it is another" in said

    def test_of_many_that_add_one_name_one_wins(self, site: Site) -> None:
        digests = [f"{number:064x}" for number in range(6)]
        with ThreadPoolExecutor(6) as pool:
            codes = list(pool.map(lambda d: site.run("image", "add", "one", "/srv/i", "--sha256", d).returncode, digests))
        assert sorted(codes) == [0, 5, 5, 5, 5, 5]

    def test_what_cannot_be_read_keeps_nobody_from_the_rest(self, site: Site, web: Web) -> None:
        add(site, web)
        newer = ImageRecord("newer", "/i", f"sha256:{SHA256}").to_json().replace('"schema":1', '"schema":9')
        site.store.create(site.keys.image("newer"), newer)
        listed = site.run("image", "list")
        assert listed.returncode == 0 and "ImageRecord of schema 9" in listed.stdout and "debian-12" in listed.stdout
        assert "the image newer cannot be read" in refused(site, 1, "image", "show", "newer")
        audited = site.run("audit")
        assert audited.returncode == 1 and "images/newer" in audited.stdout and "Traceback" not in audited.stderr
        host = site.host("node1")
        assert "the image newer cannot be read" in refused(site, 1, "create", QUERY, "newer")
        assert site.run("create", QUERY, "debian-12", "--name", "web", "--no-wait").returncode == 0
        assert spec_of(site, "web").image.checksum == f"sha512:{SHA512}" and site.claimed() and host
        assert site.run("image", "rm", "newer").returncode == 0


class TestCreating:
    def test_by_name_the_spec_has_all_of_it_and_needs_the_registry_no_more(self, site: Site, web: Web) -> None:
        site.host("node1")
        add(site, web, "old", "--property", "hw_disk_bus=sata")
        created = site.run("create", QUERY, "--image", "old", "--name", "web")
        assert created.returncode == 0, created.stderr
        assert site.run("image", "rm", "old").returncode == 0
        spec = spec_of(site, "web")
        assert (spec.image.url, spec.image.checksum, spec.image.name) == (f"{web.url}/debian.qcow2", f"sha512:{SHA512}", "old")
        assert spec.hardware == Hardware(disk_bus=DiskBus.SATA) and spec.schema == 3
        shown = site.run("show", "web").stdout
        assert f"old ({web.url}/debian.qcow2)" in shown and "disks sata, cards virtio" in shown
        assert site.run("list").stdout.splitlines()[1].split()[-1] == "old"

    def test_what_does_not_go_is_refused_before_anything_is_claimed(self, site: Site, web: Web) -> None:
        site.host("node1")
        add(site, web, "debian-12", "--min-disk", "3", "--min-memory", "512")
        said = refused(site, 2, QUERY, "debian-12")
        assert "needs at least DISK_GB:3, MEMORY_MB:512; the request has DISK_GB:1, MEMORY_MB:256" in said
        assert "there is no image debian-21; did you mean debian-12?" in refused(site, 1, QUERY, "debian-21")
        assert "is a path on this machine; the hosts do not see" in refused(site, 2, QUERY, "./debian.qcow2")
        assert "is registered with the checksum" in refused(site, 2, QUERY, "debian-12", "--checksum", f"sha256:{SHA256}")
        assert site.claimed() == set() and site.recorded() == set()

    def test_a_default_image_may_be_a_name(self, site: Site, web: Web) -> None:
        site.host("node1")
        add(site, web)
        site.configure(defaults={"image": "debian-12"})
        assert site.run(QUERY, "--name", "web", "--count", "2", "--no-wait").returncode == 0
        assert {spec_of(site, name).image.checksum for name in ("web-1", "web-2")} == {f"sha512:{SHA512}"}


class TestReadingSums:
    @pytest.mark.parametrize(
        ("path", "code", "said"),
        [
            ("missing", 2, "answered 404 Not Found: nothing is there"),
            ("others", 2, 'has no checksum of "debian.qcow2" (1 of other files)'),
            ("twice", 2, "2 sha256 checksums"),
            ("binary", 2, "is no text"),
            ("huge", 2, "is larger than"),
            ("busy", 4, "answered 503"),
            ("short", 4, "broke off"),
            ("to-file", 2, "is redirected from http to file; refused"),
            ("in-circles", 2, "is redirected more than 10 times"),
        ],
    )
    def test_what_is_no_list_of_checksums_is_said_and_nothing_is_registered(
        self, site: Site, web: Web, path: str, code: int, said: str
    ) -> None:
        web.redirects = {"/to-file": "file:///etc/passwd", "/in-circles": "/in-circles"}
        assert said in refused(site, code, "image", "add", "debian-12", f"{web.url}/debian.qcow2", "--checksum-url", path)
        assert site.store.list(site.keys.images()).items == ()

    def test_nobody_is_waited_for_for_ever(self, web: Web) -> None:
        with pytest.raises(Transient, match="was not read within"):
            sums_fetch.fetch_text(f"{web.url}/drips", deadline_seconds=0.5)
        web.close()
        with pytest.raises(Transient, match="cannot be read: Connection refused"):
            sums_fetch.fetch_text(f"{web.url}/SHA512SUMS")

    def test_redirects_are_followed_but_not_out_of_tls(self, web: Web, https: Web, monkeypatch: pytest.MonkeyPatch) -> None:
        https.redirects = {"/latest": "/SHA512SUMS", "/mirror": f"{web.url}/SHA512SUMS"}
        web.redirects = {"/safer": f"{https.url}/latest"}
        expected = FILES["/SHA512SUMS"].decode()
        assert sums_fetch.fetch_text(f"{https.url}/latest") == sums_fetch.fetch_text(f"{web.url}/safer") == expected
        web.asked.clear()
        with pytest.raises(ConfigError, match="redirected from https to http; refused"):
            sums_fetch.fetch_text(f"{https.url}/mirror")
        assert web.asked == []
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        with pytest.raises(ConfigError, match="no TLS connection that can be trusted"):
            sums_fetch.fetch_text(f"{https.url}/SHA512SUMS")


def test_a_host_builds_what_the_name_stands_for(local_deployment: Deployment, web: Web, tmp_path: Path) -> None:
    content = make_raw_image(tmp_path / "disk.raw").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    web.files = {"/images/disk.raw": content, "/images/SHA256SUMS": f"{digest} *disk.raw\n".encode()}
    properties = ("--property", "hw_disk_bus=sata", "--property", "hw_vif_model=e1000")
    local_deployment.eschedule(
        "image", "add", "tiny", f"{web.url}/images/disk.raw", "--checksum-url", "SHA256SUMS", *properties
    )
    local_deployment.eschedule("create", QUERY, "tiny", "--name", "web")
    shown = local_deployment.show("web")
    assert (shown["phase"], shown["spec"]["image"]["checksum"]) == ("Running", f"sha256:{digest}")
    assert web.asked == ["/images/SHA256SUMS", "/images/disk.raw"]
    # Other bytes under the same address: a host that has not fetched them yet refuses them.
    web.files["/images/other.raw"] = bytes(len(content))
    local_deployment.eschedule(
        "image", "add", "spoilt", f"{web.url}/images/other.raw", "--sha256", hashlib.sha256(b"x").hexdigest()
    )
    refused = local_deployment.eschedule("create", QUERY, "spoilt", "--name", "bad", check=False)
    assert refused.returncode == 1 and "ChecksumMismatch" in refused.stderr
    for name in ("web", "bad"):
        local_deployment.eschedule("destroy", name)
    for name in ("tiny", "spoilt"):
        local_deployment.eschedule("image", "rm", name)
    local_deployment.assert_nothing_is_left()
