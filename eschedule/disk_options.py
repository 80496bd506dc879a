"""The options of ``create`` that say what is on a guest's disk beside its image; reads the files that they name."""

from __future__ import annotations

import argparse
import base64
import re
from collections.abc import Sequence
from pathlib import Path

from common.disk_content import AS_IMAGE, DiskContent, GuestFile
from common.errors import ConfigError
from common.text import quoted
from eschedule.guest_options import file_content

FILES_MOST_BYTES = 65536  # in all: a spec is small, and read by everybody who looks at the instance
MOST_FILES = 64
_MOST_PATH_CHARACTERS = 1024
_INJECTION = re.compile(
    r"(?P<source>.+?):(?P<path>/[^:]*)(:(?P<mode>[^:]*)(:(?P<user>[^:]*)(:(?P<group>[^:]*))?)?)?", re.DOTALL
)
_FORM = "SRC:DST[:MODE[:UID[:GID]]], as in motd:/etc/motd or app.key:/etc/app/key:0600:33"
_MOST_ID = (1 << 32) - 2  # the highest number means nobody in particular


def disk_content_of(options: argparse.Namespace, base: DiskContent = AS_IMAGE) -> DiskContent:
    """What *options* want on the disk, where they say nothing what *base* does.

    Raises:
        ConfigError: a file cannot be read, or there are too many or too large ones, or one of them has no place in a guest.
    """
    files = base.files if options.inject is None else _files(options.inject)
    return DiskContent(resize=options.resize or base.resize, identity=options.inject_identity or base.identity, files=files)


def _files(texts: Sequence[str]) -> tuple[GuestFile, ...]:
    if len(texts) > MOST_FILES:
        raise ConfigError(
            f"--inject is given {len(texts)} times, at most {MOST_FILES} files are taken; put them into an archive"
        )
    files: dict[str, GuestFile] = {}
    left = FILES_MOST_BYTES
    for text in texts:
        source, file = _parsed(text)
        content = file_content(Path(source), left, "--inject")
        left -= len(content)
        if left < 0:
            raise ConfigError(
                f"--inject {source}: with it the files have more than {FILES_MOST_BYTES} bytes (64 KiB) in all; "
                "have the guest fetch what is large"
            )
        if file.path in files:
            raise ConfigError(f"--inject names {file.path} twice; give it once")
        files[file.path] = GuestFile(
            file.path, base64.b64encode(content).decode("ascii"), file.mode, file.user_id, file.group_id
        )  # fmt: skip
    return tuple(files.values())


def _parsed(text: str) -> tuple[str, GuestFile]:
    """The file here, and the one in the guest, still without content."""
    found = _INJECTION.fullmatch(text)
    if found is None:
        raise ConfigError(f"--inject {quoted(text)} is no {_FORM}; DST begins with /")
    path, user = found["path"], _id(found["user"], text)
    group = user if found["group"] is None else _id(found["group"], text)
    return found["source"], GuestFile(_checked_path(path), "", _mode(found["mode"], text), user, group)


def _checked_path(path: str) -> str:
    parts = path.split("/")[1:]
    if not path.isprintable() or len(path) > _MOST_PATH_CHARACTERS or not all(parts) or {".", ".."} & set(parts):
        raise ConfigError(
            f"--inject: {quoted(path)} is no path of a file in the guest; it names a file, without //, . and .. in it, "
            f"in at most {_MOST_PATH_CHARACTERS} printable characters"
        )
    return path


def _mode(text: str | None, whole: str) -> int:
    if text is None:
        return 0o644
    if not re.fullmatch(r"[0-7]{3,4}", text):
        raise ConfigError(f"--inject {quoted(whole)}: the mode {quoted(text)} is none; it looks like 0600")
    return int(text, 8)


def _id(text: str | None, whole: str) -> int:
    if text is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > _MOST_ID:
        raise ConfigError(
            f"--inject {quoted(whole)}: {quoted(text)} is no number of a user or group; names are known in the guest alone"
        )
    return int(text)
