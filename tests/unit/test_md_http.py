"""md_server's HTTP: bytes in whatever pieces to the same request, what is refused, and what an answer looks like."""

from __future__ import annotations

import pytest

from md_server import http as md_http
from md_server.http import (
    BODY_BYTES,
    CONTENT_TYPE,
    FORWARDED_FOR,
    TOKEN,
    TOKEN_TTL,
    Request,
    RequestReader,
    answer_head,
    whole_request,
)

PLAIN = b"GET /latest/meta-data/?x=1 HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"


def in_pieces(data: bytes, size: int) -> Request:
    reader = RequestReader()
    for at in range(0, len(data), size):
        assert not reader.is_done
        assert reader.take(data[at : at + size]) == len(data[at : at + size])
    assert reader.is_done
    return reader.request()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_pieces_in_which_it_comes_do_not_matter(size):
    assert in_pieces(PLAIN, size) == whole_request(PLAIN)


@pytest.mark.parametrize(
    "target",
    ["/", "/a", "/a//b", "//a", "/../a", "/52:54:00", "/x:y@z/", "/a=b+c~", "/%2F", "/%2e", "/a?b", "/a#b", "/a;b", "a", "http://a/b",
     "http:/b", "/http://a/b", "*", "", "/ b", "/\t", "/\xe9", "/a HTTP/1.1", "/\x00"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "get", "GET  "])
@pytest.mark.parametrize(
    "rest", ["HTTP/1.1\r\n", "HTTP/1.0\r\nConnection: keep-alive\r\n", "HTTP/1.1\r\nContent-Length: x\r\n", "\r\n"]
)
def test_what_is_read_at_once_is_what_is_read_piece_by_piece(method, target, rest):
    data = f"{method} {target} {rest}\r\n".encode("latin-1")
    for _ in range(2):
        assert whole_request(data) == in_pieces(data, len(data) - 1)


def test_what_is_read_of_a_request():
    assert whole_request(PLAIN) == Request("GET", "/latest/meta-data/", "/latest/meta-data/?x=1", "x=1", False, True)
    assert whole_request(b"GET /%41 HTTP/1.0\r\n\r\n") == Request("GET", "/A", "/%41", "", True, False)


@pytest.mark.parametrize(
    ("version", "connection", "keeps_open"),
    [
        (b"1.1", b"", True), (b"1.1", b"close", False), (b"1.1", b"Close", False), (b"1.0", b"", False),
        (b"1.0", b"Keep-Alive", True), (b"2.0", b"keep-alive", False),
    ],
)  # fmt: skip
def test_whether_the_connection_is_kept(version, connection, keeps_open):
    header = b"Connection: " + connection + b"\r\n" if connection else b""
    request = whole_request(b"GET / HTTP/" + version + b"\r\n" + header + b"\r\n")
    assert request is not None
    assert request.keeps_open is keeps_open


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",  # not all of it
        b"PUT / HTTP/1.1\r\nContent-Length: 4\r\n\r\n",  # a body to come
        PLAIN * 2,
        PLAIN + b"G",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 1024 + b"\r\n\r\n",  # long ones are not kept
    ],
)
def test_what_is_not_just_one_request_is_left_to_a_reader(data):
    assert whole_request(data) is None


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET http://[ HTTP/1.1\r\n\r\n", "400 "),
        (b"GET http://[::1/ HTTP/1.1\r\n\r\n", "400 "),
        (b" \t \r\n\r\n", "400 "),
        (b"GET / HTTP/1.1\r\nContent-Length: 1 1\r\n\r\n", "400 "),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", "501 "),
        (b"PUT / HTTP/1.1\r\nContent-Length: 4097\r\n\r\n", "413 "),
    ],
)
def test_what_is_refused_ends_the_connection(data, status):
    request = in_pieces(data, len(data))
    assert request.refusal is not None
    assert request.refusal[0].startswith(status)
    assert not request.keeps_open


def test_a_body_is_read_to_its_end_after_one_encouragement():
    reader = RequestReader()
    reader.take(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
    assert (reader.is_done, reader.wants_continue(), reader.wants_continue()) == (False, True, False)
    assert reader.take(b"bodyGET /") == 4
    assert reader.is_done
    assert reader.request().method == "PUT"


def test_a_body_is_handed_on_however_it_comes():
    fixed = b"POST /x HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\n\r\n\r\nhi"
    chunked = b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    for size in (1, 7, 1000):
        assert in_pieces(fixed, size).body == b"\r\n\r\nhi"
        assert in_pieces(chunked, size).body == b"hello"
    assert whole_request(fixed) is whole_request(chunked) is None
    assert in_pieces(fixed, 1000).headers == ((CONTENT_TYPE, "text/plain"),)


def test_the_longest_body_and_one_byte_more():
    head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n"
    assert in_pieces(head % BODY_BYTES + b"x" * BODY_BYTES, 1000).body == b"x" * BODY_BYTES
    reader = RequestReader()
    reader.take(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    reader.take(b"1002\r\n" + b"x" * 0x1002)
    assert reader.is_done
    assert (reader.request().refusal or ("",))[0].startswith("413")


def asked_with(*lines: bytes, target: bytes = b"/a") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def test_only_what_means_something_is_handed_on():
    request = whole_request(
        asked_with(
            b"X-aws-ec2-metadata-token-ttl-seconds: 60", b"x-forwarded-for: 1.2.3.4", b"Content-Type: a", b"Cookie: c",
            b"X-Real-IP: 1.2.3.4", b"Forwarded: for=1", b"X-aws-ec2-metadata-token: tok", b"X-Instance-ID: 1",
        )
    )  # fmt: skip
    assert request is not None
    assert dict(request.headers) == {TOKEN: "tok", TOKEN_TTL: "60", FORWARDED_FOR: "1.2.3.4", CONTENT_TYPE: "a"}


@pytest.mark.parametrize(
    "lines",
    [
        (b"X-aws-ec2-metadata-token: abc_-9",), (b"X-Aws-Ec2-Metadata-Token: abc",), (b"x-aws-ec2-metadata-token: abc",),
        (b"X-aws-ec2-metadata-token:abc",), (b"X-aws-ec2-metadata-token:  abc ",), (b"X-aws-ec2-metadata-token: x",),
        (b"X-aws-ec2-metadata-token: ",), (b"X-aws-ec2-metadata-token:",), (b"X-aws-ec2-metadata-token: a b",),
        (b"X-aws-ec2-metadata-token: abc", b"X-aws-ec2-metadata-token: abc"),
        (b"X-aws-ec2-metadata-token: abc", b"x-aws-ec2-metadata-token: def"),
        (b"x-aws-ec2-metadata-token: def", b"X-aws-ec2-metadata-token: abc"),
        (b"X-aws-ec2-metadata-token: abc", b" def"), (b"X-aws-ec2-metadata-token: abc", b"\tdef"),
        (b"X-aws_ec2_metadata_token: abc",), (b"X-aws-ec2-metadata-token : abc",), (b" X-aws-ec2-metadata-token: abc",),
        (b"X-aws-ec2-metadata-token: abc\rX-Forwarded-For: 1",), (b"X-aws-ec2-metadata-token: abc\nX-Forwarded-For: 1",),
        (b"Y: 1", b"X-aws-ec2-metadata-token: abc", b"X-Forwarded-For: 1", b"Content-Length: 0"),
        (b"X-aws-ec2-metadata-token: abc", b"Content-Length: 5"), (b"X-aws-ec2-metadata-token: abc", b"Content-Length: x"),
        (b"X-aws-ec2-metadata-token: abc", b"Transfer-Encoding: gzip"), (b"X-aws-ec2-metadata-token: " + b"a" * 200,),
        (b"X-aws-ec2-metadata-token: abc", b"no header"), (b"Y: X-aws-ec2-metadata-token: abc",),
        (b"X-aws-ec2-metadata-token-ttl-seconds: 60",),
    ],
)  # fmt: skip
@pytest.mark.parametrize("target", [b"/a", b"/a?b", b"http://x/a", b"/%41"])
def test_a_token_that_is_taken_out_of_a_request_is_the_one_that_the_parser_finds(lines, target):
    data = asked_with(*lines, target=target)
    for _ in range(2):
        found = whole_request(data)
        if found is not None:
            assert found == in_pieces(data, len(data))


def test_requests_that_differ_in_their_tokens_alone_are_parsed_once():
    md_http._whole_request.cache_clear()
    for number in range(100):
        request = whole_request(asked_with(f"X-aws-ec2-metadata-token: token-{number}".encode(), target=b"/%d" % number))
        assert request is not None
        assert (request.path, request.headers) == (f"/{number}", ((TOKEN, f"token-{number}"),))
    assert md_http._whole_request.cache_info().misses == 1


@pytest.mark.parametrize(
    ("is_1_0", "keeps_open", "first", "connection"),
    [
        (False, True, b"HTTP/1.1 200 OK", None), (False, False, b"HTTP/1.1 200 OK", b"close"),
        (True, True, b"HTTP/1.0 200 OK", b"Keep-Alive"), (True, False, b"HTTP/1.0 200 OK", b"close"),
    ],
)  # fmt: skip
def test_the_head_of_an_answer(is_1_0, keeps_open, first, connection):
    head = answer_head(
        "200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")], is_1_0=is_1_0, keeps_open=keeps_open
    )
    lines = head.split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines[1:-2])
    assert (lines[0], lines[-2:]) == (first, [b"", b""])
    assert (fields[b"Content-Length"], fields[b"Content-Type"], fields.get(b"Connection")) == (b"3", b"text/plain", connection)
    assert {b"Date", b"Server"} <= set(fields)
