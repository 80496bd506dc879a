"""The options by which a guest is told of itself and reached, which ``create`` and ``set`` share; reads the files they name.

Keys are given as files or by the names that they are kept under (``eschedule key``); the files are public, so either way their
content travels into the request, once.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from common.errors import ConfigError
from common.text import quoted
from common.validate import (
    MOST_KEYS,
    USER_DATA_MOST_BYTES,
    check_user_data,
    is_key_name,
    parse_allow,
    parse_public_keys,
)

KEY_FILE_MOST_BYTES = 65536
StoredKeys = Callable[[Collection[str]], Mapping[str, tuple[str, ...]]]


_LITERAL = re.compile(r"(ssh|ecdsa|sk)-[A-Za-z0-9@.-]+ +[A-Za-z0-9+/]+=*( .*)?")


def is_literal_key(text: str) -> bool:
    """Whether *text* is to be a public key itself, not a name or a file."""
    return _LITERAL.fullmatch(text) is not None


def none_stored(_names: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """The keys of who has no store to ask."""
    return {}


def keys_of(values: Iterable[str], stored: StoredKeys) -> tuple[str, ...]:
    """The keys that *values* name, each once: a value with a ``/`` or ``.pub`` is a file, another one a kept key, else a file.

    One that is a public key itself is taken as it is.

    Args:
        stored: asked once, for all names together, and not at all where none is given.

    Raises:
        ConfigError: one of them names no public key.
    """
    values = tuple(values)
    names = [value for value in values if is_key_name(value)]
    known = stored(names) if names else {}
    keys: dict[str, None] = {}
    for value in values:
        if is_literal_key(value):
            keys.update(dict.fromkeys(parse_public_keys(value)))
        else:
            keys.update(dict.fromkeys(known[value] if value in known else _keys_in_file(value)))
    return _few_enough(keys)


def _keys_in_file(value: str) -> tuple[str, ...]:
    if is_key_name(value) and not Path(value).exists():
        raise ConfigError(
            f"--key {quoted(value)} is neither the name of a key that is kept (eschedule key list) nor a file here; "
            f"keep it: eschedule key add {value} FILE"
        )
    if "," in value and not Path(value).exists():
        first, _, second = value.partition(",")
        raise ConfigError(f"--key {quoted(value)} is no file here; for two keys give --key twice: --key {first} --key {second}")
    return _keys_at(Path(value), "--key")


def keys_in_files(paths: Iterable[Path], option: str) -> tuple[str, ...]:
    """The keys of all files *paths*, each once.

    Raises:
        ConfigError: one of them cannot be read, or holds no public key.
    """
    return _few_enough(dict.fromkeys(key for path in paths for key in _keys_at(path, option)))


def _keys_at(path: Path, option: str) -> tuple[str, ...]:
    return parse_public_keys(file_content(path, KEY_FILE_MOST_BYTES, option), str(path))


def _few_enough(keys: Collection[str]) -> tuple[str, ...]:
    if len(keys) > MOST_KEYS:
        raise ConfigError(f"{len(keys)} keys are given in all, at most {MOST_KEYS} are taken")
    return tuple(keys)


def user_data_of(path: Path) -> bytes:
    """What is in *path*.

    Raises:
        ConfigError: it cannot be read, or is larger than a guest may be given.
    """
    return check_user_data(file_content(path, USER_DATA_MOST_BYTES, "--user-data"), str(path))


def allow_of(options: argparse.Namespace, default: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The rules that were given, None for everybody, *default* where nothing was said.

    Raises:
        ConfigError: one of them is none, or everybody is to be let in besides.
    """
    if options.allow is None:
        return None if options.allow_all or default is None else parse_allow(default, "defaults.allow")
    if options.allow_all:
        raise ConfigError("--allow lets some in, --allow-all everybody; give one of them")
    return parse_allow(options.allow)


def file_content(path: Path, most_bytes: int, option: str) -> bytes:
    """What is in *path*, and one byte more than allowed where there is more, so that the check behind it sees that."""
    try:
        # A pipe without a writer would be waited for as it is opened; one with a writer, as the shell's <(…), is read.
        with open(path.expanduser(), "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            os.set_blocking(file.fileno(), True)
            data = file.read(most_bytes + 1)
            is_pipe = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{option} {path} cannot be read: {reason}; give the path of a readable file") from None
    if is_pipe and not data:
        raise ConfigError(f"{option} {path} is a pipe that nobody writes to; give the path of a readable file")
    return data
