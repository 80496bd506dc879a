"""What lists of checksums say: as GNU's and BSD's programs write them, and as mirrors garnish them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from eschedule.sums_file import checksum_in

NAME, WHERE = "debian.qcow2", "https://h/SUMS"
SHA256, SHA512, MD5 = "a" * 64, "b" * 128, "c" * 32
FEDORA = f"""-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# debian.qcow2: 400 bytes
SHA256 (debian.qcow2) = {SHA256}
-----BEGIN PGP SIGNATURE-----

{SHA256[:60]}
=AbCd
-----END PGP SIGNATURE-----
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{SHA256}  {NAME}\n", f"sha256:{SHA256}"),
        (f"{SHA512} *{NAME}\n", f"sha512:{SHA512}"),
        (f"{SHA256.upper()}  {NAME}\r\n{SHA256}  other\r\n", f"sha256:{SHA256}"),
        (f"{'0' * 64}  other\n{SHA256}  ./{NAME}\n", f"sha256:{SHA256}"),
        (f"{SHA256}  12/images/{NAME}\n", f"sha256:{SHA256}"),
        (f"{'0' * 64}  old/{NAME}\n{SHA256}  {NAME}\n", f"sha256:{SHA256}"),
        (f"SHA256 ({NAME}) = {SHA256}\nSHA512 ({NAME}) = {SHA512}\n", f"sha512:{SHA512}"),
        (f"SHA2-256({NAME})= {SHA256}\n", f"sha256:{SHA256}"),
        (f"{MD5}  {NAME}\n{SHA256}  {NAME}\n", f"sha256:{SHA256}"),
        (f"{SHA256}  {NAME}\n{SHA256}  {NAME}\n", f"sha256:{SHA256}"),
        (f"{SHA512}\n", f"sha512:{SHA512}"),
        (FEDORA, f"sha256:{SHA256}"),
    ],
)
def test_the_checksum_of_the_file_is_found(text: str, expected: str) -> None:
    assert checksum_in(text, NAME, WHERE) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is no list of checksums"),
        ("<html><body>Not here</body></html>", "it is no list of checksums"),
        (f"{SHA256}  debian.qcow2.old\n{SHA256}  xdebian.qcow2\n", "2 of other files"),
        (f"{SHA256}  {NAME}\n{'0' * 64}  {NAME}\n", '2 sha256 checksums of "debian.qcow2" that differ'),
        (f"{SHA256}  a/{NAME}\n{'0' * 64}  b/{NAME}\n", "that differ; give the right one: --sha256 HEX"),
        (f"{MD5}  {NAME}\n", "of another kind than sha256 or sha512"),
        (f"SHA3-256 ({NAME}) = {SHA256}\n", "of another kind"),
        (f"BLAKE2b ({NAME}) = {SHA512}\n", "of another kind"),
        (f"SHA256 ({NAME}) = {SHA256[:-1]}\n", "of another kind"),
        (MD5, "of another kind"),
    ],
)
def test_what_cannot_be_relied_on_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checksum_in(text, NAME, WHERE)
    assert said in str(refused.value) and str(refused.value).startswith(WHERE) and "\n" not in str(refused.value)


names = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0\n\r", exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1
)


@given(names, st.sampled_from(["sha256", "sha512"]), st.booleans(), st.binary(), st.lists(names))
def test_what_is_written_is_found_whatever_the_file_is_called(
    name: str, algorithm: str, is_bsd: bool, content: bytes, others: list[str]
) -> None:
    if name.startswith("*"):
        name = f"x{name}"  # in GNU's form it stands for a binary file
    digest = hashlib.new(algorithm, content).hexdigest()
    escape, written = ("\\", name.replace("\\", "\\\\")) if "\\" in name else ("", name)
    lines = [f"{'0' * len(digest)}  {other}" for other in others if other.lstrip("*").removeprefix("./") not in (name, "")]
    own = f"{escape}{algorithm.upper()} ({written}) = {digest}" if is_bsd else f"{escape}{digest}  {written}"
    assert checksum_in("\n".join([*lines, own, ""]), name, WHERE) == f"{algorithm}:{digest}"


@given(st.text())
def test_any_text_is_a_checksum_or_one_line_that_refuses_it(text: str) -> None:
    try:
        checksum = checksum_in(text, NAME, WHERE)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert checksum.startswith(("sha256:", "sha512:"))
