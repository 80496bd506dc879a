"""Files that describe instances (``vm.yaml``): read, judged by their schema and by what reads the options of ``create``.

A field means what the option of its name does, and is read by the same code. What is wrong is told with its line. What a file
does not say is left as it is, or as it is by default.
"""

from __future__ import annotations

import base64
import binascii
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config_file import Document, documents_in, schema_problems
from common.errors import ConfigError
from common.validate import (
    check_user_data,
    is_image_name,
    parse_allow,
    parse_checksum,
    parse_forward,
    parse_group,
    parse_hostname,
    parse_image,
    parse_instance,
    parse_name,
)
from eschedule.guest_options import file_content, is_literal_key, user_data_of
from eschedule.labels import parse_given
from eschedule.needs import check_trait
from eschedule.nic_options import parse_nic
from eschedule.sizes import GIB, MIB, parse_size
from eschedule.vm_schema import VM_FILE

STANDARD_INPUT = "-"
MOST_BYTES = 4 * 1024 * 1024
USER_DATA = ("user_data", "user_data_file", "user_data_base64")
NEEDS = ("cpus", "memory", "disk", "traits", "not_traits", "host", "zone", "request")
_LINES = ("user_data",)  # texts with several lines
_OPTIONAL_NAME = {key: value for key, value in VM_FILE.items() if key != "required"}


@dataclass(frozen=True)
class VmFile:
    """One instance as a file says it.

    Args:
        source: the file, for messages. *directory*: what its relative paths begin at.
    """

    source: str
    directory: Path
    document: Document

    @property
    def name(self) -> str:
        return str(self.document.value["name"])

    @property
    def values(self) -> Mapping[str, Any]:
        return self.document.value

    @property
    def says_user_data(self) -> bool:
        return any(key in self.values for key in USER_DATA)

    @property
    def user_data(self) -> bytes | None:
        """What it says of user data.

        Raises:
            ConfigError: there is no such file, or it is too large.
        """
        values = self.values
        if "user_data_base64" in values:
            return check_user_data(base64.b64decode(values["user_data_base64"]), self.at("user_data_base64"))
        if "user_data_file" in values:
            return user_data_of(self.path(values["user_data_file"]))
        text = values.get("user_data")
        return None if text is None else check_user_data(text.encode(), self.at("user_data"))

    def path(self, text: str) -> Path:
        """The file that *text* names."""
        return self.directory / Path(text).expanduser()

    def key(self, text: str) -> str:
        """One of ``keys`` as ``--key`` takes it."""
        is_path = not is_literal_key(text) and ("/" in text or text.endswith(".pub"))
        return str(self.path(text)) if is_path else text

    def injection(self, text: str) -> str:
        """One of ``inject`` as ``--inject`` takes it."""
        source, colon, rest = text.partition(":")
        return f"{self.path(source)}{colon}{rest}"

    def at(self, *path: str | int) -> str:
        """``vm.yaml: line 7: nics``."""
        return self.line(*path) + (f": {path[0]}" if path else "")

    def line(self, *path: str | int) -> str:
        """``vm.yaml: line 7``: where *path* is, or what it is in."""
        lines = self.document.lines
        number = next(lines[path[:length]] for length in range(len(path), -1, -1) if path[:length] in lines)
        return f"{self.source}: line {number}"


def read_files(names: Iterable[str]) -> list[VmFile]:
    """All instances that the files *names* describe, ``-`` for standard input.

    Raises:
        ConfigError: a file cannot be read, or describes none; a line for each fault.
    """
    found = [vm for name in names for vm in files_in(_text(name), _source(name), _directory(name))]
    known: dict[str, VmFile] = {}
    for vm in found:
        if (other := known.setdefault(vm.name, vm)) is not vm:
            raise ConfigError(f"{vm.at('name')}: {vm.name} is described twice, also in {other.at()}; describe it once")
    return found


def files_in(text: str, source: str, directory: Path) -> list[VmFile]:
    """The instances that *text* describes.

    Raises:
        ConfigError: as ``read_files``.
    """
    found = [VmFile(source, directory, document) for document in documents_in(text, source)]
    if not found:
        raise ConfigError(f"{source}: describes no instance; it needs lines such as name: web-1 (docs/vm-file.md)")
    if problems := [problem for vm in found for problem in _problems(vm)]:
        raise ConfigError("\n".join(problems))
    return found


def _source(name: str) -> str:
    return "standard input" if name == STANDARD_INPUT else name


def _directory(name: str) -> Path:
    return Path() if name == STANDARD_INPUT else Path(name).expanduser().parent


def _text(name: str) -> str:
    is_piped = name == STANDARD_INPUT
    data = sys.stdin.buffer.read(MOST_BYTES + 1) if is_piped else file_content(Path(name), MOST_BYTES, "--file")
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{_source(name)}: is larger than {MOST_BYTES} bytes; divide it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{_source(name)}: line {line} is not UTF-8; save the file in that encoding") from None


# -- judged --------------------------------------------------------------------------------------------------------------


def _problems(vm: VmFile) -> list[str]:
    """What is wrong with *vm*, a line each: by its schema, and where it is so, by what its texts mean."""
    problems = [
        f"{vm.line(*problem.paths[0])}: {problem.text}"
        for problem in schema_problems(vm.values, _OPTIONAL_NAME, of_lines=_LINES)
    ]
    if "name" not in vm.values:
        problems.append(f"{vm.at()}: has no name; it is what the instance is known by")
    return problems or [*_meaning_problems(vm)]


def _meaning_problems(vm: VmFile) -> Iterable[str]:
    said = [key for key in USER_DATA if key in vm.values]
    if len(said) > 1:
        yield f"{vm.at(said[1])}: {said[0]} is given, too; give one of them"
    if "policy" in vm.values and "group" not in vm.values:
        yield f"{vm.at('policy')}: says how the instances of a group are spread; name it: group"
    for key, value in vm.values.items():
        check = _CHECKS.get(key)
        for path, one in [((key, i), one) for i, one in enumerate(value)] if key in _EACH else [((key,), value)]:
            try:
                if check is not None and one is not None:
                    check(one)
            except ConfigError as error:
                yield f"{vm.at(*path)}: {error}"


def _check_base64(text: str) -> None:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError("is no base64") from None


_EACH = ("traits", "not_traits", "nics", "publish", "volumes")
_CHECKS: dict[str, Callable[[Any], object]] = {
    "name": parse_name,
    "memory": lambda text: parse_size(text, "the size", MIB, "4G or 512M"),
    "disk": lambda text: parse_size(text, "the size", GIB, "20G"),
    "traits": lambda text: check_trait("the text", text),
    "not_traits": lambda text: check_trait("the text", text),
    "image": lambda text: None if is_image_name(text) else parse_image(text, None),
    "checksum": parse_checksum,
    "hostname": parse_hostname,
    "labels": lambda labels: parse_given([f"{name}={value}" for name, value in labels.items()], "labels"),
    "user_data_base64": _check_base64,
    "nics": lambda text: parse_nic(text, "default"),
    "allow": lambda rules: parse_allow([",".join(rules) or "none"], "allow"),
    "publish": parse_forward,
    "volumes": parse_instance,
    "group": parse_group,
}


# -- as options ----------------------------------------------------------------------------------------------------------

_OPTIONS: dict[str, tuple[str, Callable[[VmFile, Any], Any]]] = {
    "cpus": ("cpus", lambda _vm, number: str(number)),
    "memory": ("memory", lambda _vm, text: text),
    "disk": ("disk", lambda _vm, text: text),
    "traits": ("trait", lambda _vm, texts: texts),
    "not_traits": ("not_trait", lambda _vm, texts: texts),
    "host": ("host", lambda _vm, text: text),
    "zone": ("zone", lambda _vm, text: text),
    "request": ("query", lambda _vm, text: text),
    "name": ("name", lambda _vm, text: text),
    "image": ("image", lambda _vm, text: text),
    "checksum": ("checksum", lambda _vm, text: text),
    "hostname": ("hostname", lambda _vm, text: text),
    "labels": ("label", lambda _vm, labels: [f"{name}={value}" for name, value in labels.items()]),
    "keys": ("key", lambda vm, texts: [vm.key(text) for text in texts]),
    "nics": ("nics", lambda _vm, texts: texts or None),
    "publish": ("publish", lambda _vm, texts: texts),
    "inject": ("inject", lambda vm, texts: [vm.injection(text) for text in texts]),
    "inject_identity": ("inject_identity", lambda _vm, flag: flag),
    "grow": ("resize", lambda _vm, flag: flag),
    "restart": ("restart", lambda _vm, text: text),
    "grace_seconds": ("grace_seconds", lambda _vm, number: str(number)),
    "metadata": ("metadata", lambda _vm, text: text),
    "metadata_hop_limit": ("metadata_hop_limit", lambda _vm, number: str(number)),
    "config_drive": ("config_drive", lambda _vm, text: text),
    "group": ("group", lambda _vm, text: text),
    "policy": ("policy", lambda _vm, text: text),
}


def options_of(vm: VmFile, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``create`` that make what *vm* says, where *given*, those of a command line, say nothing themselves.

    Raises:
        ConfigError: its user data cannot be had.
    """
    found = dict(given)
    for field, value in vm.values.items():
        if field in _OPTIONS:
            option, convert = _OPTIONS[field]
            if option == "image" and found["image_argument"] is not None:
                continue
            if found.get(option) in (None, False):
                found[option] = convert(vm, value)
    if "allow" in vm.values and found["allow"] is None and not found["allow_all"]:
        rules: Sequence[str] | None = vm.values["allow"]
        found["allow"], found["allow_all"] = (None, True) if rules is None else ([",".join(rules) or "none"], False)
    if vm.says_user_data and found["user_data"] is None:
        found["user_data_given"] = vm.user_data
    return found
