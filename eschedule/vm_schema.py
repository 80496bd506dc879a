"""The JSON Schema of a file that describes instances (``vm.yaml``), as data; ``docs/json/vm-file.schema.json`` is a copy of it.

It says what kind of value each field has, and which words it takes; whether a text is a network card or an ssh key is found out
by what reads the options of ``create``, which mean the same.
"""

from __future__ import annotations

from common.schemas import DRAFT, Schema
from common.validate_access import MOST_HOPS


def _text(description: str) -> Schema:
    return {"type": "string", "description": description}


def _texts(description: str, each: str) -> Schema:
    return {"type": "array", "items": _text(each), "uniqueItems": True, "description": description}


def _words(description: str, *words: str) -> Schema:
    return {"type": "string", "enum": list(words), "description": description}


def _number(description: str, least: int, most: int) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most, "description": description}


def _flag(description: str) -> Schema:
    return {"type": "boolean", "description": description}


VM_FILE: Schema = {
    "$schema": DRAFT,
    "title": "an instance, as eschedule create --file, apply, diff, edit and export have it",
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": _text("1 to 63 of a-z, 0-9 and -"),
        "cpus": _number("CPUs", 1, 4096),
        "memory": _text("a size, as 4G or 512M"),
        "disk": _text("a size, as 20G"),
        "traits": _texts("which its host must have", "a trait, as HW_CPU_X86_AVX2"),
        "not_traits": _texts("which its host must not have", "a trait, as CUSTOM_OLD"),
        "host": _text("the host that it is to be on"),
        "zone": _text("the zone of its host"),
        "request": _text("Placement's own query string, beside the fields above or in their place"),
        "image": _text("a registered name, an http(s):// or file:// URL, or an absolute path"),
        "checksum": _text("sha256:HEX or sha512:HEX"),
        "hostname": _text("what the guest calls itself"),
        "labels": {
            "type": "object", "additionalProperties": _text("a text, in quotes where it looks like a number"),
            "description": "a mapping of names to texts, as app: web",
        },
        "keys": _texts("who may log in", "a public ssh key, the name of one that is kept, or a file"),
        "user_data": {"type": ["string", "null"], "description": "handed to the guest's cloud-init; null for none"},
        "user_data_file": _text("the file that it is in"),
        "user_data_base64": _text("the same in base64, where it is no text"),
        "nics": _texts("network cards, as --nic has them", "a card, as default or network=lan"),
        "allow": {
            "type": ["array", "null"], "items": _text("a rule, as tcp:22"),
            "description": "who may reach it; null for everybody, [] for nobody",
        },
        "publish": _texts("ports of its host that lead to it", "HOSTPORT:GUESTPORT, as 8080:80"),
        "inject": _texts("files to write to its disk", "SRC:DST, as motd:/etc/motd"),
        "inject_identity": _flag("host name, keys and network are written to its disk"),
        "grow": _flag("its root's partition and file system are grown, as by --resize"),
        "volumes": _texts("that it is to have", "the name of a volume"),
        "restart": _words("when it goes down by itself", "never", "on-failure", "always"),
        "grace_seconds": _number("how long it has to power off", 0, 3600),
        "metadata": _words("who may read its metadata", "optional", "required", "off"),
        "metadata_hop_limit": _number("how many hops an answer with a token may go", 1, MOST_HOPS),
        "config_drive": _words("its metadata as a disk", "auto", "openstack", "nocloud", "none"),
        "group": _text("of instances that are kept apart or together"),
        "policy": _words("of the group", "anti-affinity", "soft-anti-affinity", "affinity", "soft-affinity"),
        "power": _words("what it is to do", "running", "stopped", "paused", "suspended"),
    },
}  # fmt: skip
