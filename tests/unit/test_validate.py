"""What users give is either taken in its normal form or refused in one line; nothing else happens."""

from __future__ import annotations

import base64
import contextlib
import re
import struct
from uuid import UUID

import microversion_parse
import pytest
import webob
from hypothesis import given, settings
from hypothesis import strategies as st
from placement import lib, microversion, util
from placement.schemas import allocation_candidate

from common import validate
from common.errors import ConfigError
from common.model import ImageRef, Restart
from common.validate import parse_image, parse_name, parse_public_keys, parse_resources_query
from common.validate_images import parse_property, parse_user
from common.validate_keys import fingerprint

ENOUGH = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:256"
AGGREGATE = "11111111-2222-3333-4444-555555555555"
# Made by ssh-keygen; their private halves were thrown away.
ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDILStVBInh3Ai7jej/rm6hMRZ2YrjZvE5uCqxz8bYS4"
ECDSA = (
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBCM16OxP5gKeoUX/HpqkWZrtNxybonpzHyixvRhLC9jgtVkVuhzqlwkny"
    "oQXugP7yyDZlAmtWVE6M6d0geKyqJw="
)
RSA = (
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCym+ndnSG0J7uUF+AWaQqhDnwC9nT10jT23ON9m+52dIQKx39IP7RY9opvlcYOuOSx6ZqpawmduAm1//I31IoGPXVSEX"
    "zOPvwvPWaOvMGHoGhHm2Gwtuewcg1Z5SdKRIfe/qGWp0/lsKUAT8XExQuZJKCBkCU0zaHFYFnrCy6mH9ZFTw3eSfK3o0UtzelwFfXaXNAY0UCzkFMumt2TaOC5tseje6+1"
    "Ohn+Cn3T+4Dm25eTllTNTqGiuDPnL2ouog34+jeno+JcjQvt8L15jH5mUePl1x3hQdVdXXPxyzen3xBba/zQyXEx7FB/k4Vysv97D1magFlTWIiaHVabhzDd"
)


def _refused(call, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    line = str(caught.value)
    assert line.isprintable(), line
    assert len(line) < 400, line
    return line


def _only_config_error(call, *arguments) -> None:
    try:
        call(*arguments)
    except ConfigError as error:
        assert str(error).isprintable()


# -- Placement's query ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "normal", "resources"),
    [
        (ENOUGH, "resources=DISK_GB:1,MEMORY_MB:256,VCPU:1", {"VCPU": 1, "DISK_GB": 1, "MEMORY_MB": 256}),
        (f"?{ENOUGH}", "resources=DISK_GB:1,MEMORY_MB:256,VCPU:1", None),
        ("resources=VCPU%3A01,DISK_GB:1,MEMORY_MB:256", "resources=DISK_GB:1,MEMORY_MB:256,VCPU:1", None),
        (f"{ENOUGH}&required=HW_CPU_X86_AVX2,!CUSTOM_OLD", "required=!CUSTOM_OLD,HW_CPU_X86_AVX2&resources=…", None),
        (f"{ENOUGH}&required=in:B,A&required=C", "required=C&required=in:A,B&resources=…", None),
        (f"{ENOUGH}&required=CUSTOM_A,CUSTOM_A", "required=CUSTOM_A&resources=…", None),
        (f"{ENOUGH}&member_of=!in:{AGGREGATE},{AGGREGATE.upper()}", f"member_of=!in:{AGGREGATE}&resources=…", None),
        (f"{ENOUGH}&member_of={AGGREGATE}&in_tree={AGGREGATE}", f"in_tree={AGGREGATE}&member_of={AGGREGATE}&resources=…", None),
        (f"{ENOUGH}&root_required=!COMPUTE_STATUS_DISABLED", "resources=…&root_required=!COMPUTE_STATUS_DISABLED", None),
        (
            "resources=PCPU:2,DISK_GB:1&resources_A=MEMORY_MB:100,CUSTOM_X:1&resources_B=MEMORY_MB:28&group_policy=isolate",
            "group_policy=isolate&resources=DISK_GB:1,PCPU:2&resources_A=CUSTOM_X:1,MEMORY_MB:100&resources_B=MEMORY_MB:28",
            {"PCPU": 2, "DISK_GB": 1, "MEMORY_MB": 128, "CUSTOM_X": 1},
        ),
        (
            f"{ENOUGH}&resources1=VGPU:1&required2=CUSTOM_NUMA&same_subtree=2,1&group_policy=none",
            "group_policy=none&required2=CUSTOM_NUMA&resources=…&resources1=VGPU:1&same_subtree=1,2",
            None,
        ),
    ],
)
def test_a_query_of_placements_is_taken_in_its_normal_form(query, normal, resources):
    parsed = parse_resources_query(query)
    assert parsed.query == normal.replace("…", "DISK_GB:1,MEMORY_MB:256,VCPU:1")
    assert resources is None or parsed.resources == resources
    assert parse_resources_query(parsed.query) == parsed


def test_values_of_a_parameter():
    parsed = parse_resources_query(f"{ENOUGH}&required=A&required=B")
    assert parsed.values("required") == ("A", "B")
    assert parsed.values("in_tree") == ()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "the request is empty"),
        ("?", "the request is empty"),
        ("VCPU:1,DISK_GB:1", '"VCPU:1,DISK_GB:1" in the request has no =; parts look like resources='),
        ("resources=", "resources= in the request is empty; write it like resources="),
        ("resources=VCPU", '"VCPU" in resources= is no CLASS:AMOUNT'),
        ("resources=VCPU:", '"VCPU:" in resources= is no CLASS:AMOUNT'),
        ("resources=:1", '":1" in resources= is no CLASS:AMOUNT'),
        ("resources=VCPU:1,,DISK_GB:1", '"" in resources= is no CLASS:AMOUNT'),
        ("resources=VCPU:1:2", 'VCPU in resources= is "1:2", needs a whole number from 1'),
        ("resources=VCPU:0", "VCPU in resources= is 0, needs a whole number from 1"),
        ("resources=VCPU:-1", 'VCPU in resources= is "-1", needs a whole number from 1'),
        ("resources=VCPU:1.5", 'VCPU in resources= is "1.5", needs a whole number from 1'),
        ("resources=VCPU:one", 'VCPU in resources= is "one", needs a whole number from 1'),
        ("resources=VCPU:٣", 'VCPU in resources= is "٣", needs a whole number from 1'),
        ("resources=VCPU:5000", "VCPU in resources= is 5000, at most 4096 is taken"),
        (f"resources=MEMORY_MB:{2**31}", "at most 67108864 (MiB) is taken"),
        (f"resources=CUSTOM_X:{2**31}", f"at most {2**31 - 1} is taken"),
        (f"resources=VCPU:{'9' * 5000}", "at most 4096 is taken"),
        ("resources=VCPU:3000,DISK_GB:1,MEMORY_MB:1&resources1=VCPU:3000", "VCPU in the whole request is 6000, at most 4096"),
        ("resources=VCPU:1,VCPU:2", "resources= names VCPU twice"),
        ("resources=vcpu:1", '"vcpu" in resources= is no resource class; did you mean VCPU?'),
        ("resources=RAM:1", "did you mean MEMORY_MB?"),
        ("resources=MEMORY:1", "did you mean MEMORY_MB?"),
        ("resources=CPU:1", "did you mean VCPU?"),
        ("resources=BANANA:1", "usual are VCPU, MEMORY_MB and DISK_GB"),
        ("resources=CUSTOM_:1", "is no resource class"),
        ("resources=CUSTOM_a:1", "is no resource class"),
        ("resources=VCPU:1", "resources= lacks MEMORY_MB and DISK_GB, which every instance needs; for example resources="),
        ("resources=DISK_GB:1,MEMORY_MB:1", "resources= lacks VCPU,"),
        ("resources=VCPU:1, DISK_GB:1", "has spaces or control characters"),
        ("resources=VCPU:1,DISK_GB:1\n", "has spaces or control characters"),
        ("resources=VCPU:1%00", "has spaces or control characters"),
        ("resources=VCPU:1%ff", "is no UTF-8"),
        ("resource=VCPU:1", '"resource" in the request is unknown; did you mean resources?'),
        ("banana=1", "is unknown; known are resources[GROUP], required[GROUP]"),
        (f"{ENOUGH}&", "has an empty part"),
        (f"{ENOUGH}&limit=3", "candidates_limit in schedule.yaml"),
        (f"{ENOUGH}&{ENOUGH}", "resources= is given 2 times"),
        (f"{ENOUGH}&in_tree={AGGREGATE}&in_tree={AGGREGATE}", "in_tree= is given 2 times"),
        (f"{ENOUGH}&required=", "required= in the request is empty; leave it out"),
        (f"{ENOUGH}&required=avx2", '"avx2" in required= is no trait'),
        (f"{ENOUGH}&required=A,", '"" in required= is no trait'),
        (f"{ENOUGH}&required=!!A", '"!!A" in required= is no trait'),
        (f"{ENOUGH}&required=in:A,!B", '"!B" in required= is no trait'),
        (f"{ENOUGH}&required=A&required=!A", "required= in the request both requires and forbids A"),
        (f"{ENOUGH}&root_required=in:A,B", "root_required= in the request takes no in:"),
        (f"{ENOUGH}&root_required=A,!A", "root_required= in the request both requires and forbids A"),
        (f"{ENOUGH}&member_of=x", '"x" in member_of= is no uuid'),
        (f"{ENOUGH}&member_of={AGGREGATE},{AGGREGATE}", "member_of= in the request lists 2 aggregates; write in:"),
        (f"{ENOUGH}&in_tree=host1", '"host1" in in_tree= is no uuid'),
        (f"{ENOUGH}&group_policy=any", "needs none or isolate"),
        (f"{ENOUGH}&same_subtree=,a", "has an empty name"),
        (f"{ENOUGH}&same_subtree=a", 'same_subtree= names the group "a", but the request has no resourcesa='),
        (f"{ENOUGH}&required1=A", "required1= in the request has no resources1= to apply to"),
        ("required=A", "the request has no resources="),
        ("resources1=VCPU:1,DISK_GB:1,MEMORY_MB:256&required=A", "required= in the request has no resources= to apply to"),
        (f"{ENOUGH}&resources1=VGPU:1&resources2=VGPU:1", "the request has several groups; add group_policy=none"),
        (f"{ENOUGH}&required={'A' * 9000}", "at most 8192 are taken"),
    ],
)
def test_a_wrong_query_is_one_line(query, said):
    assert said in _refused(parse_resources_query, query)


def _ask_placement(query: str) -> None:
    """What Placement itself does with a query before it looks into its database, at the microversion that we use."""
    request = webob.Request.blank(f"/allocation_candidates?{query}")
    version = microversion_parse.parse_version_string("1.39")
    version.max_version, version.min_version = (1, 39), (1, 0)
    request.environ[microversion.MICROVERSION_ENVIRON] = version
    util.validate_query_params(request, allocation_candidate.GET_SCHEMA_1_36)
    wide = lib.RequestWideParams.from_request(request)
    groups = lib.RequestGroup.dict_from_request(request, wide)
    assert wide.group_policy or len([g for g in groups.values() if g.use_same_provider]) < 2


_TRAITS = ["HW_CPU_X86_AVX2", "A,!B", "in:A,B", "!A", "A", "!!A", "in:!A"]
_AGGREGATES = [AGGREGATE, f"in:{AGGREGATE},{AGGREGATE}", f"!{AGGREGATE}", f"!in:{AGGREGATE}", f"{AGGREGATE},{AGGREGATE}"]
_PARAMETERS = {
    "resources": ["CUSTOM_X:2,VGPU:1", "VCPU:1", "VCPU:0"],
    "required": _TRAITS,
    "member_of": _AGGREGATES,
    "in_tree": [AGGREGATE, "host1"],
}
_PAIRS = st.one_of(
    *(
        st.tuples(st.sampled_from(["", "1", "_A"]).map(lambda suffix, name=name: name + suffix), st.sampled_from(values))
        for name, values in _PARAMETERS.items()
    ),
    st.tuples(st.just("group_policy"), st.sampled_from(["none", "isolate", "any"])),
    st.tuples(st.just("root_required"), st.sampled_from(_TRAITS)),
    st.tuples(st.just("same_subtree"), st.sampled_from(["1,_A", "_A", "1", "1,", ","])),
)


@settings(max_examples=500)  # some in twenty are taken
@given(st.lists(_PAIRS, max_size=4))
def test_what_is_taken_here_placement_takes_too(pairs):
    query = "&".join([ENOUGH, *(f"{name}={value}" for name, value in pairs)])
    with contextlib.suppress(ConfigError):
        parsed = parse_resources_query(query)
        _ask_placement(parsed.query)
        assert parse_resources_query(parsed.query) == parsed


@given(st.text(max_size=80) | st.text("resourcequid_VCPUMEMORYDISKGB:=,&!%+019 \n", max_size=80).map(lambda t: f"{ENOUGH}&{t}"))
def test_no_query_gives_another_exception(query):
    _only_config_error(parse_resources_query, query)


# -- names and identifiers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "0", "web-1", "a--b", "x" * 63, "deadbeef"])
def test_a_dns_label_is_a_name(name):
    assert parse_name(name) == name
    assert validate.parse_instance(name) == name
    assert validate.parse_hostname(name) == name
    assert validate.parse_group(name) == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "is empty"),
        ("x" * 64, "has 64 characters"),
        ("my vm", "has a space"),
        ("Web", "has capital letters"),
        ("-a", "begins or ends with -"),
        ("a-", "begins or ends with -"),
        ("a.b", 'has "."'),
        ("a/b", 'has "/"'),
        ("a\n", 'has "\\n"'),
        ("ü", 'has "ü"'),
        ("а", "has"),  # Cyrillic
        (AGGREGATE, "looks like a uuid"),
        (AGGREGATE.replace("-", ""), "looks like a uuid"),
    ],
)
def test_another_name_is_refused_with_what_is_allowed(name, said):
    line = _refused(parse_name, name)
    assert said in line
    assert "uuid" in line or "allowed are 1 to 63 of a-z, 0-9 and -" in line


@given(st.text(max_size=70))
def test_a_name_that_is_taken_is_a_dns_label(name):
    with contextlib.suppress(ConfigError):
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", parse_name(name))


def test_a_uuid_is_told_from_a_name():
    assert validate.parse_instance(AGGREGATE.upper()) == UUID(AGGREGATE)
    assert validate.parse_uuid(AGGREGATE) == UUID(AGGREGATE)
    assert "--uuid" in _refused(validate.parse_uuid, "abc", "--uuid")
    assert "nil uuid" in _refused(validate.parse_uuid, str(UUID(int=0)))
    for other in (f"{{{AGGREGATE}}}", f"urn:uuid:{AGGREGATE}", AGGREGATE.replace("-", ""), f"{AGGREGATE}\n"):
        assert not validate.is_uuid(other)


def test_other_words():
    assert validate.parse_network("br-lan.10") == "br-lan.10"
    assert "is no name" in _refused(validate.parse_network, "a b")
    assert "is no name" in _refused(validate.parse_network, "../x")
    assert validate.parse_request_id("deploy 17") == "deploy 17"
    assert _refused(validate.parse_request_id, "")
    assert _refused(validate.parse_request_id, "x" * 256)
    assert _refused(validate.parse_request_id, "a\nb")
    assert validate.parse_restart("on-failure") is Restart.ON_FAILURE
    assert "did you mean on-failure?" in _refused(validate.parse_restart, "on_failure")


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("600", 600), ("0.5", 0.5), ("86400", 86400)])
def test_seconds(text, value):
    assert validate.parse_seconds(text, "--wait") == value


@pytest.mark.parametrize("text", ["", "-1", "86401", "nan", "inf", "1e3", "0x10", "1_0", "1.2.3", ".", "٣", "5s", " 5"])
def test_other_seconds_are_refused(text):
    assert "needs a number of seconds from 0 to 86400" in _refused(validate.parse_seconds, text, "--wait")


@pytest.mark.parametrize("text", ["", "0", "-1", "1001", "1.0", "1_0", "٣", "9" * 5000])
def test_other_counts_are_refused(text):
    assert validate.parse_count("1000", "--count") == 1000
    assert "needs a whole number from 1 to 1000" in _refused(validate.parse_count, text, "--count")


# -- images --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        "http://h/i",
        "https://h:8443/a/b.qcow2?sig=1",
        "http://[::1]:80/i",
        "file:///a/b",
        "file://localhost/a",
        "/a/b c.img",
        "/ä",
    ],
)
def test_an_image_is_a_url_or_an_absolute_path(image):
    assert parse_image(image) == ImageRef(image)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("", "the image is empty"),
        ("debian!", "is neither a name (eschedule image list), an http://, https:// or file:// URL nor an absolute path"),
        ("./debian.img", "is a path on this machine; the hosts do not see this machine's files: serve it by http"),
        ("~/debian.img", "is a path on this machine"),
        ("debian.QCOW2", "is a path on this machine"),
        ("images/debian", "is a path on this machine"),
        ("ftp://h/i", "is neither"),
        ("http:/h/i", "is neither"),
        ("C:\\i", "is neither"),
        ("http://", "names no host"),
        ("http:///i", "names no host"),
        ("http://h:99999/i", "is no URL"),
        ("http://[h/i", "is no URL"),
        ("http://h/a b", "has a space; write %20"),
        ("http://h/a\nb", "control characters"),
        ("/a\x1b[2J", "control characters"),
        ("/a/\udcff", "control characters"),
        ("/a/", "is a folder"),
        ("/", "is a folder"),
        ("//h/i", "begins with two slashes"),
        ("file://a/b", "needs three"),
        ("file:///", "names no file"),
        (f"/{'x' * 5000}", "too long"),
    ],
)
def test_another_image_is_refused(image, said):
    assert said in _refused(parse_image, image)


@pytest.mark.parametrize(
    "image",
    ["https://u:hunter2@h/i", "ftp://u:hunter2@h/i", "http://u:hunter2@[h/i", "http://u:hunter2@h:x/i", "http://hunter2@h/ i"],
)
def test_an_image_with_a_password_is_refused_without_repeating_it(image):
    assert "hunter2" not in _refused(parse_image, image)


def test_a_checksum_is_put_into_small_letters():
    assert parse_image("/i", f"sha256:{'AB' * 32}") == ImageRef("/i", f"sha256:{'ab' * 32}")
    assert validate.parse_checksum(f"sha512:{'0' * 128}") == f"sha512:{'0' * 128}"


@pytest.mark.parametrize(
    ("checksum", "said"),
    [
        ("", "is of no known kind"),
        ("md5:00", "is of no known kind; write sha256:<64 hex digits>"),
        ("a" * 64, "write sha256: before it"),
        ("a" * 128, "write sha512: before it"),
        ("sha256:", "has 0 characters behind the colon, needs 64 hex digits"),
        (f"sha256:{'a' * 63}", "has 63 characters"),
        (f"sha256:{'g' * 64}", "needs 64 hex digits"),
        (f"sha256:{'a' * 128}", "needs 64 hex digits"),
        (f"SHA256:{'a' * 64}", "is of no known kind"),
    ],
)
def test_another_checksum_is_refused(checksum, said):
    assert said in _refused(parse_image, "/i", checksum)


@given(st.text(max_size=60) | st.text("htpsfile:/@[]?#.%1a", max_size=40), st.none() | st.text(max_size=80))
def test_no_image_gives_another_exception(image, checksum):
    _only_config_error(parse_image, image, checksum)


# -- user data -----------------------------------------------------------------------------------------------------------


def test_user_data_up_to_64_kib():
    assert validate.check_user_data(b"x" * 65536) == b"x" * 65536
    line = _refused(validate.check_user_data, b"x" * 65537, "/tmp/user-data")
    assert "/tmp/user-data has 65537 bytes, at most 65536 (64 KiB)" in line


# -- public keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [ED25519, ECDSA, RSA], ids=["ed25519", "ecdsa", "rsa"])
def test_a_key_of_ssh_keygen_is_taken(key):
    assert parse_public_keys(f"{key} ann@desk\n".encode()) == (f"{key} ann@desk",)
    assert parse_public_keys(key) == (key,)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("sk-ssh-ed25519@openssh.com", [b"p" * 32, b"ssh:"]),
        ("sk-ecdsa-sha2-nistp256@openssh.com", [b"nistp256", b"p" * 65, b"ssh:"]),
    ],
)
def test_a_key_of_a_security_token_is_taken(kind, fields):
    assert parse_public_keys(_line(kind, kind, *fields)) == (_line(kind, kind, *fields),)


def test_several_keys_with_comments_blank_lines_tabs_and_windows_line_ends():
    text = f"# mine\r\n\r\n  {ED25519}\tann @ desk \r\n{RSA}\n{ED25519}\tann @ desk\n"
    assert parse_public_keys(text.encode()) == (f"{ED25519} ann @ desk", RSA)


def _line(kind: str, *fields: str | bytes) -> str:
    blob = b"".join(struct.pack(">I", len(f)) + (f if isinstance(f, bytes) else f.encode()) for f in fields)
    return f"{kind} {base64.b64encode(blob).decode()}"


PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n-----END OPENSSH PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no public key"),
        ("# nothing\n\n", "holds no public key"),
        (PRIVATE, "is a PRIVATE key, which must never leave your machine; give the public one, which ends in .pub"),
        (PRIVATE.replace("OPENSSH", "RSA"), "is a PRIVATE key"),
        ("PuTTY-User-Key-File-3: ssh-rsa\nhunter2", "is a PRIVATE key"),
        (f"{ED25519}\n{PRIVATE}", "is a PRIVATE key"),
        ("---- BEGIN SSH2 PUBLIC KEY ----\nhunter2", "ssh-keygen -i -f FILE"),
        ("-----BEGIN PUBLIC KEY-----\nhunter2", "-m PKCS8"),
        ("hunter2", "line 1: no OpenSSH public key"),
        (f"{ED25519}\nhunter2 is my password", "line 2: no OpenSSH public key"),
        (f'no-pty,command="hunter2" {ED25519}', "options stand before the key, and are not taken"),
        ("ssh-dss AAAA hunter2", "a DSA key"),
        ("ssh-ed25519-cert-v01@openssh.com AAAA hunter2", "a certificate, not a key"),
        ("ssh-ed25519", "the key behind ssh-ed25519 is missing"),
        ("ssh-ed25519 hunter2!", "is no base64"),
        (ED25519[:-5], "is no base64"),
        (ED25519[:-4], "cut short"),
        (ED25519.replace("ssh-ed25519", "ssh-rsa"), "the line says ssh-rsa, but the key in it is of another type"),
        (_line("ssh-ed25519", "ssh-ed25519"), "has not the fields of ssh-ed25519"),
        (_line("ssh-ed25519", "ssh-ed25519", b"x" * 31), "has not the fields of ssh-ed25519"),
        (_line("ssh-ed25519", "ssh-ed25519", b"x" * 32, b"more"), "has not the fields of ssh-ed25519"),
        (f"{ED25519} hunter2\x1b[2J", "control characters in a key"),
        (f"{ED25519} hunter2\x00", "control characters in a key"),
        (f"{ED25519} hunter2\x85{RSA}", "control characters in a key"),
        (b"\xff\xfehunter2", "it is no text"),
        (b"x" * 70000, "at most 65536 are read"),
        ("\n".join(_line("ssh-ed25519", "ssh-ed25519", bytes([n]) * 32) for n in range(101)), "holds 101 keys, at most 100"),
    ],
)
def test_what_is_no_public_key_is_refused_and_never_repeated(text, said):
    line = _refused(parse_public_keys, text, "/home/ann/key")
    assert said in line
    assert line.startswith("/home/ann/key")
    assert "hunter2" not in line


_KEYS = st.sampled_from([ED25519, ECDSA, RSA])


@given(st.binary(max_size=100) | st.text(max_size=100) | st.tuples(_KEYS, st.integers(0, 400)).map(lambda k: k[0][: k[1]]))
def test_no_key_gives_another_exception(data):
    _only_config_error(parse_public_keys, data)


@given(st.tuples(_KEYS, st.text(max_size=10), st.text(max_size=10)).map(lambda t: f"{t[1]}{t[0]} {t[2]}"))
def test_a_key_that_is_taken_is_one_printable_line_without_options(text):
    with contextlib.suppress(ConfigError):
        for key in parse_public_keys(text):
            assert key.isprintable()
            assert key.startswith(("ssh-", "ecdsa-", "sk-"))


@given(st.text(max_size=30))
def test_no_word_gives_another_exception(text):
    for parse in (validate.parse_instance, validate.parse_network, validate.parse_request_id, validate.parse_restart):
        _only_config_error(parse, text)
    for parse in (validate.parse_seconds, validate.parse_count, validate.parse_uuid):
        _only_config_error(parse, text, "--option")


def test_a_fingerprint_is_the_one_of_ssh_keygen():
    """Compared with ``ssh-keygen -lf``."""
    assert fingerprint(f"{ED25519} me@here") == "SHA256:0myzyHgUbfasmahIPAdCQ7eTHeLQTb0eV5iXbtv24C8 (ED25519)"
    assert fingerprint(ECDSA) == "SHA256:LHeR5Wfmb4C9e+jD/kIG9hF7EXlsHHEkp6P1sehyGzE (ECDSA)"
    assert fingerprint(RSA) == "SHA256:Cz0vHR7xN8HHQnQ0rNXJCupstIrPSsKYeHEiko06yuc (RSA)"


@pytest.mark.parametrize("name", ["alice", "alice@laptop", "Team-1", "a.b_c+d", "x" * 63])
def test_a_name_for_keys(name):
    assert validate.parse_key_name(name) == name


@pytest.mark.parametrize(
    ("name", "said"), [("", "is none"), ("a/b", "is none"), ("-x", "is none"), ("~", "is none"), ("x" * 64, "is none"),
                       ("id_ed25519.pub", "ends in .pub, as files do")],
)  # fmt: skip
def test_another_name_for_keys_is_refused(name, said):
    assert said in _refused(validate.parse_key_name, name)


@pytest.mark.parametrize("text", ["0", "65", "x", ""])
def test_another_hop_limit_is_refused(text):
    assert "a whole number from 1 to 64" in _refused(validate.parse_hop_limit, text)


@pytest.mark.parametrize("name", ["debian-12", "Fedora_40", "ubuntu-24.04", "v1.2+build.7", "a", "x" * 63])
def test_an_image_name_is_taken(name):
    assert validate.is_image_name(name) and validate.parse_image_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "a/b", "../a", "a b", "a:b", "ü", "x" * 64, "a\n", "debian.qcow2", "disk.IMG", "d.raw.xz"]
)
def test_what_could_be_a_file_or_an_address_is_no_image_name(name):
    assert not validate.is_image_name(name)
    assert "image name" in _refused(validate.parse_image_name, name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hw_disk_bus", "is no KEY=VALUE"),
        ("hw_disk_bus=ide", 'is "ide", needs one of virtio, sata'),
        ("hw_vif_model=", "needs one of virtio, e1000"),
        ("hw_disk_buss=sata", "is not honoured; did you mean hw_disk_bus?"),
        ("=x", "is not honoured; known are hw_disk_bus, hw_vif_model, os_distro"),
        ("os_distro=", "1 to 255 printable characters"),
        ("os_distro=a\x1bb", "1 to 255 printable characters"),
    ],
)
def test_only_properties_that_are_honoured_are_taken(text, said):
    assert said in _refused(parse_property, text)


def test_properties_and_users_are_taken():
    assert [parse_property(text) for text in ("hw_disk_bus=sata", "os_distro=a=b")] == [
        ("hw_disk_bus", "sata"),
        ("os_distro", "a=b"),
    ]
    assert parse_user("debian") == "debian"
    assert "no user name" in _refused(parse_user, "a b")
