"""Images over HTTP: a real server that behaves, and all the ways in which one does not."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.config import ImagesConfig
from common.errors import Cancelled, ChecksumMismatch, EcomputeError, ImageInvalid, ImageNotFound, ImageUnavailable
from common.model import ImageRef
from ecompute.image_sources import shown_url
from ecompute.images import CachedImage, ImageCache
from tests.support.disk_images import MIB, make_qcow2, make_raw, sha256
from tests.support.processes import free_port, wait_until

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class ImageServer:
    """Answers each path as the test scripted it, and remembers what it was asked."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.asked.append(self.path)
                server.headers.append(dict(self.headers))
                with contextlib.suppress(OSError):
                    server.answers.get(self.path, status(404))(self)

            def end_headers(self) -> None:
                self.send_header("Connection", "close")
                super().end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.port = free_port()
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._http.daemon_threads = True
        if tls:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.base = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def status(code: int, **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def body(
    content: bytes, *, length: int | None = None, says_length: bool = True, pause: Callable[[int], object] = lambda _: None,
    **headers: str,
) -> Answer:  # fmt: skip
    """*content* in pieces of 256 KiB, *pause* called with what was sent before each; *length* is what the header claims."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if says_length:
            handler.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        for start in range(0, len(content), 256 * 1024):
            pause(start)
            handler.wfile.write(content[start : start + 256 * 1024])

    return answer


def chunked(content: bytes, *, is_whole: bool = True) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(content), 100_000):
            piece = content[start : start + 100_000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if is_whole:
            handler.wfile.write(b"0\r\n\r\n")

    return answer


@pytest.fixture(autouse=True)
def straight_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[ImageServer]:
    server = ImageServer()
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "images", ImagesConfig(fetch_timeout_seconds=0.5))


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return make_raw(tmp_path / "source.img", size_mib=4).read_bytes()


def fetch(cache: ImageCache, url: str, checksum: str | None = None) -> CachedImage:
    return cache.fetch(ImageRef(url, checksum), progress=lambda *_: None, is_cancelled=lambda: False)


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "images").iterdir() if path.name != "index")


def failure(cache: ImageCache, tmp_path: Path, url: str) -> EcomputeError:
    """How fetching *url* fails; and that nothing is left of it."""
    with pytest.raises(EcomputeError) as caught:
        fetch(cache, url)
    assert kept(tmp_path) == []
    assert cache.is_cached(ImageRef(url)) is None
    return caught.value


def test_an_image_is_downloaded_once_with_progress_and_then_never_asked_for(
    server: ImageServer, cache: ImageCache, tmp_path: Path
) -> None:
    source = make_qcow2(tmp_path / "source.img")
    server.answers["/a"] = body(source.read_bytes(), ETag='"v1"', Last_Modified="Tue, 01 Jul 2025 00:00:00 GMT")
    image = ImageRef(f"{server.base}/a")
    assert cache.is_cached(image) is None
    found = fetch(cache, image.url)
    assert (found.format, found.virtual_size_bytes, found.digest) == ("qcow2", 4 * MIB, sha256(source))
    assert sha256(found.path) == sha256(source)
    assert cache.is_cached(image) == found == fetch(cache, image.url)
    assert fetch(ImageCache(tmp_path / "images", ImagesConfig()), image.url) == found
    assert server.asked == ["/a"]
    assert server.headers[0]["Accept-Encoding"] == "identity"
    (entry,) = (tmp_path / "images" / "index").iterdir()
    assert '\\"v1\\"' in entry.read_text()


def test_many_threads_share_one_download_of_one_image_and_images_load_side_by_side(
    server: ImageServer, cache: ImageCache, content: bytes
) -> None:
    both = threading.Barrier(2)
    first, second = content, content[:-512] + b"x" * 512
    server.answers["/a"] = body(first, pause=lambda sent: sent or both.wait(10))
    server.answers["/b"] = body(second, pause=lambda sent: sent or both.wait(10))
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda number: fetch(cache, f"{server.base}/{'ab'[number % 2]}"), range(12)))
    assert sorted(server.asked) == ["/a", "/b"]
    assert {image.digest for image in found} == {hashlib.sha256(data).hexdigest() for data in (first, second)}


def test_a_checksum_that_no_image_here_has_asks_the_server_again(
    server: ImageServer, cache: ImageCache, content: bytes
) -> None:
    newer = content[:-512] + b"n" * 512
    server.answers["/a"] = body(content)
    old = fetch(cache, f"{server.base}/a")
    server.answers["/a"] = body(newer)
    assert fetch(cache, f"{server.base}/a") == old
    new = fetch(cache, f"{server.base}/a", f"sha256:{hashlib.sha256(newer).hexdigest()}")
    assert new.digest != old.digest
    assert fetch(cache, f"{server.base}/a") == new  # what the address led to last
    with pytest.raises(ChecksumMismatch):
        fetch(cache, f"{server.base}/a", f"sha512:{'0' * 128}")
    assert len(server.asked) == 3


def test_an_answer_without_a_length_is_taken(server: ImageServer, cache: ImageCache, content: bytes) -> None:
    server.answers["/chunked"] = chunked(content)
    server.answers["/until-close"] = body(content, says_length=False)
    assert fetch(cache, f"{server.base}/chunked") == fetch(cache, f"{server.base}/until-close")


def test_redirects_are_followed_to_http_only(server: ImageServer, cache: ImageCache, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(content)
    server.answers["/file"] = status(302, Location=f"file://{tmp_path}/secret")
    server.answers["/ftp"] = status(302, Location="ftp://127.0.0.1/secret")
    server.answers["/circle"] = status(302, Location="/circle")
    for path, words in {"/file": "something other than http", "/ftp": "something other than http", "/circle": "circle"}.items():
        error = failure(cache, tmp_path, f"{server.base}{path}")
        assert isinstance(error, ImageNotFound)
        assert words in str(error)
    server.answers["/moved"] = status(301, Location="/a")
    server.answers["/a"] = body(content)
    assert fetch(cache, f"{server.base}/moved").format == "raw"


@pytest.mark.parametrize("code", [204, 304, 400, 401, 403, 404, 410, 416])
def test_a_status_that_will_stay_is_permanent(code: int, server: ImageServer, cache: ImageCache, tmp_path: Path) -> None:
    server.answers["/a"] = status(code)
    error = failure(cache, tmp_path, f"{server.base}/a")
    assert isinstance(error, ImageNotFound)
    assert f"the server answered {code}" in str(error)


@pytest.mark.parametrize("code", [408, 429, 500, 503])
def test_a_status_that_may_pass_says_when(code: int, server: ImageServer, cache: ImageCache, tmp_path: Path) -> None:
    server.answers["/a"] = status(code, Retry_After="7")
    error = failure(cache, tmp_path, f"{server.base}/a")
    assert isinstance(error, ImageUnavailable)
    assert f"the server answered {code}" in str(error)
    assert error.retry_after == 7.0


def test_a_retry_date_is_read_by_the_servers_own_clock(server: ImageServer, cache: ImageCache, tmp_path: Path) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response_only(503)
        handler.send_header("Date", "Tue, 01 Jan 1980 00:00:00 GMT")
        handler.send_header("Retry-After", "Tue, 01 Jan 1980 00:00:20 GMT")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.answers["/a"] = answer
    assert getattr(failure(cache, tmp_path, f"{server.base}/a"), "retry_after", None) == 20.0


def test_a_download_that_is_cut_off_is_no_image_and_may_be_tried_again(
    server: ImageServer, cache: ImageCache, content: bytes, tmp_path: Path
) -> None:
    server.answers["/short"] = body(content, length=len(content) + 1)
    server.answers["/chunked"] = chunked(content, is_whole=False)
    for path in ("/short", "/chunked"):
        error = failure(cache, tmp_path, f"{server.base}{path}")
        assert isinstance(error, ImageUnavailable)
        assert f"broke off after {len(content)} of" in str(error)
    server.answers["/short"] = body(content)
    assert fetch(cache, f"{server.base}/short").format == "raw"


def test_a_server_that_falls_silent_is_given_up(server: ImageServer, cache: ImageCache, content: bytes, tmp_path: Path) -> None:
    release = threading.Event()
    server.answers["/before"] = lambda handler: release.wait(20) and None
    server.answers["/midway"] = body(content, pause=lambda sent: sent < MIB or release.wait(20))
    for path in ("/before", "/midway"):
        began = time.monotonic()
        error = failure(cache, tmp_path, f"{server.base}{path}")
        assert time.monotonic() - began < 5
        assert isinstance(error, ImageUnavailable)
        assert "sent nothing for 0.5 s" in str(error)
    release.set()


def test_a_server_that_is_not_there_may_be_later(cache: ImageCache, tmp_path: Path) -> None:
    error = failure(cache, tmp_path, f"http://127.0.0.1:{free_port()}/a")
    assert isinstance(error, ImageUnavailable)
    assert "Connection refused" in str(error)


def test_a_page_instead_of_an_image_is_refused_at_its_first_bytes(
    server: ImageServer, cache: ImageCache, tmp_path: Path
) -> None:
    release = threading.Event()
    page = b"<!doctype html><title>log in</title>" + bytes(2 * MIB)
    server.answers["/a"] = body(page, pause=lambda sent: sent < MIB or release.wait(20))
    error = failure(cache, tmp_path, f"{server.base}/a")
    assert isinstance(error, ImageInvalid)
    assert "HTML page" in str(error)
    release.set()


def test_an_address_that_never_ends_is_refused(server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecompute.images._GIB", MIB)
    cache = ImageCache(tmp_path / "images", ImagesConfig(max_size_gib=2))
    release = threading.Event()
    endless = bytes(510) + b"\x55\xaa" + bytes(64 * MIB)
    server.answers["/says-so"] = body(endless, pause=lambda _: release.wait(20))
    server.answers["/does-not"] = body(endless, says_length=False)
    for path in ("/says-so", "/does-not"):
        error = failure(cache, tmp_path, f"{server.base}{path}")
        assert isinstance(error, ImageInvalid)
        assert error.reason == "ImageTooLarge"
    release.set()


def test_a_cancelled_download_leaves_at_once_and_nothing_stays(
    server: ImageServer, cache: ImageCache, content: bytes, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    server.answers["/a"] = body(content, pause=lambda sent: time.sleep(0.2) if sent > MIB else None)
    with pytest.raises(Cancelled):
        cache.fetch(
            ImageRef(f"{server.base}/a"), progress=lambda *told: seen.append(told), is_cancelled=lambda: bool(seen)
        )  # fmt: skip
    wait_until(lambda: kept(tmp_path) == [], timeout_seconds=5, what="the partial file is gone")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", f"{path}.cert"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    path.write_text(path.read_text() + Path(f"{path}.cert").read_text())
    return path


def test_tls_is_checked_against_the_hosts_own_authorities(
    certificate: Path, cache: ImageCache, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = ImageServer(context)
    server.answers["/a"] = body(content)
    try:
        error = failure(cache, tmp_path, f"{server.base}/a")
        assert isinstance(error, ImageNotFound)
        assert error.reason == "ImageTlsFailed"
        assert "update-ca-certificates" in str(error)
        monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.cert")
        assert fetch(cache, f"{server.base}/a").format == "raw"
    finally:
        server.close()


def test_plain_http_where_tls_was_asked_for_is_refused(server: ImageServer, cache: ImageCache, tmp_path: Path) -> None:
    error = failure(cache, tmp_path, f"https://127.0.0.1:{server.port}/a")
    assert isinstance(error, ImageNotFound)
    assert error.reason == "ImageTlsFailed"


def test_secrets_in_an_address_stay_out_of_messages(server: ImageServer, cache: ImageCache, tmp_path: Path) -> None:
    error = failure(cache, tmp_path, f"http://user:pass@127.0.0.1:{server.port}/a?signature=hidden#part")
    assert "pass" not in str(error)
    assert "hidden" not in str(error)
    assert f"http://127.0.0.1:{server.port}/a?…" in str(error)
    assert shown_url("http://[broken/a?secret") == "(an address that cannot be read)"
    gone = failure(cache, tmp_path, f"http://user:pass@127.0.0.1:{free_port()}/a?signature=hidden")
    assert "hidden" not in str(gone)
    assert "pass" not in str(gone)


@pytest.mark.parametrize("url", ["http://", "http://[broken/a", "http:///a", "http://127.0.0.1:99999/a", "http://a..b/a"])
def test_an_address_that_cannot_be_asked_is_said(url: str, cache: ImageCache, tmp_path: Path) -> None:
    assert isinstance(failure(cache, tmp_path, url), (ImageNotFound, ImageUnavailable))
