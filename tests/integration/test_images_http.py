"""Images over HTTP: a real server that behaves, and all the ways in which one does not."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import os
import random
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.config import ImagesConfig
from common.errors import Cancelled, ChecksumMismatch, EcomputeError, ImageInvalid, ImageNotFound, ImageUnavailable
from common.model import ImageRef
from ecompute.image_sources import shown_url
from ecompute.images import CachedImage, ImageCache
from tests.support.disk_images import MIB, make_qcow2, make_raw, sha256
from tests.support.image_server import ImageServer, Resumable, body, chunked, status
from tests.support.processes import free_port, wait_until


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


@pytest.mark.parametrize("location", ["http://[::bad/", "http://127.0.0.1:99999/a", "http://a\\b:x/", "http://\u00e9..x/"])
def test_a_redirect_to_what_is_no_address_is_permanent(
    location: str, server: ImageServer, cache: ImageCache, tmp_path: Path
) -> None:
    server.answers["/a"] = status(302, Location=location)
    error = failure(cache, tmp_path, f"{server.base}/a")
    assert isinstance(error, ImageNotFound)
    assert "that can be asked" in str(error)


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


DATED = "Mon, 30 Jun 2025 00:00:00 GMT"


@pytest.mark.parametrize("validators", [{"ETag": '"v1"'}, {"Last_Modified": DATED}])
def test_a_download_that_broke_off_goes_on_where_it_ended(
    validators: dict[str, str], server: ImageServer, cache: ImageCache, content: bytes
) -> None:
    answer = server.answers["/a"] = Resumable(content, breaks=2, **validators)
    found = fetch(cache, f"{server.base}/a")
    assert found.digest == hashlib.sha256(content).hexdigest() == sha256(found.path)
    assert len(answer.ranges) == 2
    begins = [int(text.removeprefix("bytes=").rstrip("-")) for text in answer.ranges]
    assert 0 < begins[0] < begins[1] < 2_000_001
    assert all(headers["If-Range"] == next(iter(validators.values())) for headers in server.headers[1:])


def test_a_packed_download_that_broke_off_is_unpacked_as_if_nothing_were(
    server: ImageServer, cache: ImageCache, content: bytes
) -> None:
    packed = gzip.compress(random.Random(3).randbytes(510) + content[510:MIB] + random.Random(4).randbytes(2 * MIB))
    answer = server.answers["/a.gz"] = Resumable(packed, breaks=2, piece=700_000, ETag='"v1"')
    found = fetch(cache, f"{server.base}/a.gz", f"sha256:{hashlib.sha256(packed).hexdigest()}")
    assert found.path.read_bytes() == gzip.decompress(packed)
    assert len(answer.ranges) == 2


@pytest.mark.parametrize("validators", [{}, {"ETag": 'W/"v1"'}, {"Last_Modified": "Tue, 01 Jul 2025 11:59:30 GMT"}])
def test_without_what_tells_versions_apart_a_download_begins_anew(
    validators: dict[str, str], server: ImageServer, cache: ImageCache, content: bytes, tmp_path: Path
) -> None:
    answer = server.answers["/a"] = Resumable(content, **validators)
    error = failure(cache, tmp_path, f"{server.base}/a")
    assert isinstance(error, ImageUnavailable)
    assert answer.ranges == []
    assert fetch(cache, f"{server.base}/a").format == "raw"


def test_a_connection_that_is_reset_loses_only_what_was_not_read(
    server: ImageServer, cache: ImageCache, content: bytes
) -> None:
    answer = server.answers["/a"] = Resumable(content, breaks=2, is_reset=True, ETag='"v1"')
    assert fetch(cache, f"{server.base}/a").digest == hashlib.sha256(content).hexdigest()
    assert len(answer.ranges) == 2


@pytest.mark.parametrize(
    "content_range",
    ["bytes 0-{last}/{total}", "bytes {first}-{last}/*", "bytes {first}-{last}/9", "bytes {first}-{first}/{total}", "nonsense"],
)
def test_a_part_that_is_another_than_was_asked_for_is_not_taken(
    content_range: str, server: ImageServer, cache: ImageCache, content: bytes, tmp_path: Path
) -> None:
    answer = server.answers["/a"] = Resumable(content, ETag='"v1"')
    answer.content_range = content_range
    error = failure(cache, tmp_path, f"{server.base}/a")
    assert isinstance(error, ImageUnavailable)
    assert "of 4194304 bytes" in str(error) or "Connection reset" in str(error)
    assert fetch(cache, f"{server.base}/a").digest == hashlib.sha256(content).hexdigest()


def test_a_server_without_ranges_or_with_a_new_version_is_asked_from_the_beginning(
    server: ImageServer, cache: ImageCache, content: bytes, tmp_path: Path
) -> None:
    answer = server.answers["/a"] = Resumable(content, ETag='"v1"')
    answer.ignores_ranges = True
    assert isinstance(failure(cache, tmp_path, f"{server.base}/a"), ImageUnavailable)
    changing = server.answers["/b"] = Resumable(content, ETag='"v1"')

    def answers_anew(handler: http.server.BaseHTTPRequestHandler) -> None:
        changing(handler)
        changing.headers["ETag"] = '"v2"'

    server.answers["/b"] = answers_anew
    assert isinstance(failure(cache, tmp_path, f"{server.base}/b"), ImageUnavailable)
    assert fetch(cache, f"{server.base}/b") == fetch(cache, f"{server.base}/a")


def test_a_server_that_is_busy_in_between_is_asked_again(server: ImageServer, tmp_path: Path, content: bytes) -> None:
    cache = ImageCache(tmp_path / "images", ImagesConfig(fetch_timeout_seconds=5))
    answer = server.answers["/a"] = Resumable(content, ETag='"v1"')
    answer.status_between = [503, 502]
    assert fetch(cache, f"{server.base}/a").format == "raw"
    assert len(answer.ranges) == 3


def test_a_server_that_breaks_off_again_and_again_is_given_up(
    server: ImageServer, cache: ImageCache, content: bytes, tmp_path: Path
) -> None:
    stuck = server.answers["/stuck"] = Resumable(content, breaks=1000, piece=0, ETag='"v1"')
    assert isinstance(failure(cache, tmp_path, f"{server.base}/stuck"), ImageUnavailable)
    assert len(stuck.ranges) == 3
    crumbs = server.answers["/crumbs"] = Resumable(content + bytes(40 * MIB), breaks=1000, piece=300_000, ETag='"v1"')
    assert isinstance(failure(cache, tmp_path, f"{server.base}/crumbs"), ImageUnavailable)
    assert len(crumbs.ranges) == 50


def revalidating(tmp_path: Path, hours: float | None = 0) -> ImageCache:
    return ImageCache(tmp_path / "images", ImagesConfig(fetch_timeout_seconds=0.5, revalidate_after_hours=hours))


def age(tmp_path: Path, hours: float) -> None:
    """Make every note of the cache as old as if it had been written *hours* ago."""
    for entry in (tmp_path / "images" / "index").iterdir():
        os.utime(entry, (time.time() - hours * 3600,) * 2)


def test_an_old_address_is_asked_whether_it_has_something_newer(server: ImageServer, content: bytes, tmp_path: Path) -> None:
    cache, image = revalidating(tmp_path, 24), ImageRef(f"{server.base}/a")
    server.answers["/a"] = body(content, ETag='W/"v1"', Last_Modified=DATED)
    old = fetch(cache, image.url)
    age(tmp_path, 23)
    assert cache.is_ready(image)
    age(tmp_path, 25)
    assert not cache.is_ready(image)
    assert cache.is_cached(image) == old
    server.answers["/a"] = status(304)
    assert fetch(cache, image.url) == old
    assert server.headers[-1]["If-None-Match"] == 'W/"v1"'
    assert server.headers[-1]["If-Modified-Since"] == DATED
    assert cache.is_ready(image)
    age(tmp_path, -1)  # the clock was set back since
    newer = content[:-512] + b"n" * 512
    server.answers["/a"] = body(newer, ETag='W/"v2"')
    new = fetch(cache, image.url)
    assert new.digest == hashlib.sha256(newer).hexdigest()
    assert kept(tmp_path) == sorted([old.path.name, new.path.name])
    assert len(server.asked) == 3
    assert cache.is_ready(image)


def test_it_is_asked_for_each_guest_or_never_where_that_is_configured(
    server: ImageServer, content: bytes, tmp_path: Path
) -> None:
    image = ImageRef(f"{server.base}/a")
    server.answers["/a"] = body(content, ETag='"v1"')
    always, never = revalidating(tmp_path, 0), revalidating(tmp_path, None)
    found = fetch(always, image.url)
    server.answers["/a"] = status(304)
    assert fetch(always, image.url) == fetch(always, image.url) == found
    assert len(server.asked) == 3
    age(tmp_path, 100_000)
    assert fetch(never, image.url) == found
    with_checksum = ImageRef(image.url, f"sha256:{found.digest}")
    assert always.is_ready(with_checksum)
    assert fetch(always, image.url, with_checksum.checksum) == found
    assert len(server.asked) == 3


def test_a_server_that_gives_nothing_newer_keeps_no_guest_from_its_image(
    server: ImageServer, content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers["/a"] = body(content, ETag='"v1"')
    image = ImageRef(f"{server.base}/a")
    found = fetch(revalidating(tmp_path), image.url)
    silent = threading.Event()
    worse = {
        "404": status(404), "503": status(503), "sent nothing": lambda handler: silent.wait(20) and None,
        "broke off": body(content, length=len(content) + 1), "HTML page": body(b"<!doctype html>" + bytes(MIB)),
    }  # fmt: skip
    for words, answer in worse.items():
        server.answers["/a"] = answer
        cache, asked = revalidating(tmp_path), len(server.asked)
        caplog.clear()
        assert fetch(cache, image.url) == found
        assert cache.is_ready(image)  # for a while: the next guests of a burst do not wait for it again
        assert fetch(cache, image.url) == found
        assert len(server.asked) == asked + 1
        (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert words in warning
    silent.set()
    server.close()
    assert fetch(revalidating(tmp_path), image.url) == found
    assert kept(tmp_path) == [found.path.name]


def test_an_image_that_is_unchanged_and_no_longer_here_is_downloaded(
    server: ImageServer, content: bytes, tmp_path: Path
) -> None:
    server.answers["/a"] = body(content, ETag='"v1"')
    found = fetch(revalidating(tmp_path), f"{server.base}/a")
    found.path.unlink()
    assert fetch(revalidating(tmp_path), f"{server.base}/a") == found
    assert "If-None-Match" not in server.headers[-1]


def test_a_note_with_nonsense_in_it_makes_no_nonsense_of_the_request(
    server: ImageServer, content: bytes, tmp_path: Path
) -> None:
    server.answers["/a"] = body(content, ETag='"v1"')
    found = fetch(revalidating(tmp_path), f"{server.base}/a")
    (entry,) = (tmp_path / "images" / "index").iterdir()
    for value in (1, None, ["x"], "a\r\nX: y", "ü", ""):
        entry.write_text(json.dumps({**json.loads(entry.read_text()), "etag": value}))
        assert fetch(revalidating(tmp_path), f"{server.base}/a") == found
        assert "If-None-Match" not in server.headers[-1]
