"""What a file of checksums says of one file: SHA256SUMS and SHA512SUMS as GNU's and BSD's programs write them. Pure.

Lines that are neither, as the signature around Fedora's, are passed over. A file that holds one bare digest and nothing else is
taken for the one that is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from common.errors import ConfigError
from common.text import quoted

_OF_DIGITS = {128: "sha512", 64: "sha256"}  # the longer one goes first where both are there
_HEX = "[0-9A-Fa-f]{32,128}"
_GNU = re.compile(rf"(\\?)({_HEX})[ \t]+\*?(\S.*)")
_BSD = re.compile(rf"(\\?)([A-Za-z0-9-]+) ?\((.+)\) ?= ?({_HEX})")
Entry = tuple[str, str, str]  # file name, algorithm ("" for one that is not taken), digest


def checksum_in(text: str, file_name: str, where: str) -> str:
    """The checksum of *file_name*, as ``sha512:…`` or ``sha256:…``, in *text*, which was read at *where*.

    Raises:
        ConfigError: it has none, or two that differ.
    """
    entries = list(_entries(text))
    own = [entry for entry in entries if entry[0] == file_name]
    if not own:  # some list what is in folders
        own = [entry for entry in entries if entry[0].rpartition("/")[2] == file_name]
    words = text.split()
    if len(words) == 1 and re.fullmatch(_HEX, words[0]):
        own = [_entry(file_name, words[0])]
    for algorithm in _OF_DIGITS.values():
        found = {digest for _, known, digest in own if known == algorithm}
        if len(found) > 1:
            raise ConfigError(
                f"{where} has {len(found)} {algorithm} checksums of {quoted(file_name)} that differ; give the right one: "
                f"--{algorithm} HEX"
            )
        if found:
            return f"{algorithm}:{found.pop()}"
    if own:
        raise ConfigError(
            f"{where} has a checksum of {quoted(file_name)}, but of another kind than sha256 or sha512; give another"
        )
    held = f"{len(entries)} of other files" if entries else "it is no list of checksums"
    raise ConfigError(f"{where} has no checksum of {quoted(file_name)} ({held}); give the list that names it, or --sha256 HEX")


def _entries(text: str) -> Iterator[Entry]:
    """Each line that has a name and a digest."""
    for line in text.split("\n"):
        stripped = line.strip()
        if match := _BSD.fullmatch(stripped):
            escape, label, name, digest = match.groups()
        elif match := _GNU.fullmatch(stripped):
            (escape, digest, name), label = match.groups(), ""
        else:
            continue
        yield _entry((_unescaped(name) if escape else name).removeprefix("./"), digest, label)


def _entry(name: str, digest: str, label: str = "") -> Entry:
    """*label* is how BSD's programs say of what kind a digest is: SHA256, and SHA3-256 of the same length."""
    algorithm = _OF_DIGITS.get(len(digest), "")
    is_other = label and label.lower().replace("sha2-", "sha").replace("-", "") != algorithm
    return name, "" if is_other else algorithm, digest.lower()


def _unescaped(name: str) -> str:
    """A name with a backslash or a line end in it, as coreutils writes them behind a leading backslash."""
    return re.sub(r"\\(.)", lambda match: {"n": "\n", "r": "\r"}.get(match[1], match[1]), name)
