"""JSON Schemas (draft 2020-12) as data: the two configuration files, and the records that other programs may read in etcd.

``COMPUTE`` and ``SCHEDULE`` judge configuration files for ``common/config.py``; a pattern's ``description`` says in words
what is allowed, and becomes part of the message. ``RECORDS`` documents the records of ``common/model.py`` for readers in
other languages; a reader must pass over properties that it does not know. Nothing is checked against them at run time.
The module is one long list of data.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
MOST_SECONDS = 86400
MOST_INTEGER = 2**31 - 1
UUID_PATTERN = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"


def _section(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _integer(minimum: int, maximum: int) -> Schema:
    return {"type": "integer", "minimum": minimum, "maximum": maximum}


def _seconds(minimum: float = 0.05, maximum: float = MOST_SECONDS) -> Schema:
    return {"type": "number", "minimum": minimum, "maximum": maximum}


def _one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _text(pattern: str, description: str) -> Schema:
    return {"type": "string", "pattern": pattern, "maxLength": 4096, "description": description}


def _or_null(schema: Schema) -> Schema:
    """*schema*, or null for a key that may be left unset."""
    wider = {**schema, "type": [schema["type"], "null"]}
    if "enum" in schema:
        wider["enum"] = [*schema["enum"], None]
    return wider


_FILE = _text("^(/|~/).", "the path of a file, absolute or beginning with ~/")
_FOLDER = _text("^/[^/]", "an absolute path")
_PORT = "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
_LISTEN = f"^([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\]):{_PORT}$"
_UUID = _text(UUID_PATTERN, "a uuid")
_NETWORK = _text("^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$", "the name of a network")
_PLAIN = _text("^[^\\s]+$", "a text without spaces")
# Judged in config_checks, which does not repeat the password that an address should not hold.
_URL = _text("", "http://HOST:PORT or https://HOST:PORT")
_RULE = _text("", "a rule, such as tcp:22 or icmp")
_IMAGE = _text("", "the name of a registered image, an http(s):// or file:// URL or an absolute path")

_ETCD: dict[str, Schema] = {
    "endpoints": {"type": "array", "minItems": 1, "uniqueItems": True, "items": _URL},
    "prefix": _text("^/([A-Za-z0-9._-]+/)+$", "a path that begins and ends with /, such as /etcd-compute/v1/"),
    "ca_file": _or_null(_FILE),
    "certificate_file": _or_null(_FILE),
    "key_file": _or_null(_FILE),
    "username": _or_null(_PLAIN),
    "password_file": _or_null(_FILE),
    "deadline_seconds": _seconds(maximum=3600),
    "journal_days": _integer(0, 365),
}
_BRIDGE = _text("^[^\\s/]{1,15}$", "the name of a network interface, at most 15 characters")
_LEASE: dict[str, Schema] = {
    "lease_ttl_seconds": _integer(2, 3600),
    "heartbeat_every_seconds": _seconds(maximum=3600),
}
_PLACEMENT: dict[str, Schema] = {
    "url": _URL,
    "token_file": _or_null(_FILE),
    "timeout_seconds": _seconds(maximum=3600),
    "deadline_seconds": _seconds(maximum=3600),
    "project_id": _or_null(_UUID),
    "user_id": _or_null(_UUID),
}
_LOG: dict[str, Schema] = {
    "level": _one_of("debug", "info", "warning", "error"),
    "format": _one_of("auto", "text", "json"),
}
_RESOURCE = _section(
    {
        "reserved": _integer(0, MOST_INTEGER),
        "allocation_ratio": {"type": "number", "exclusiveMinimum": 0, "maximum": 1000},
    }
)

COMPUTE: Schema = {
    "$schema": DRAFT,
    "title": "compute.yaml",
    **_section(
        {
            "name": _or_null(_text("^[A-Za-z0-9]([A-Za-z0-9._-]{0,198}[A-Za-z0-9])?$", "a host name")),
            "uuid": _or_null(_UUID),
            "etcd": _section({**_ETCD, **_LEASE}),
            "placement": _section(_PLACEMENT),
            "libvirt": _section(
                {
                    "uri": _text(
                        "^(qemu|qemu\\+unix|test)://(/|$)", "the URI of a libvirt on this machine, such as qemu:///system"
                    ),
                    "virt_type": _one_of("auto", "kvm", "qemu", "test"),
                    "machine_type": _or_null(_text("^[A-Za-z0-9._-]+$", "a machine type of QEMU, such as q35")),
                    "cpu_mode": _or_null(_one_of("host-passthrough", "host-model", "maximum")),
                    "kvm_probe_deadline_seconds": _seconds(1, 600),
                    "save_directory": _FOLDER,
                    "graphics": _one_of("none", "vnc"),
                }
            ),
            "inventory": _section({"vcpu": _RESOURCE, "memory_mb": _RESOURCE, "disk_gb": _RESOURCE}),
            "paths": _section({"state_dir": _FOLDER, "run_dir": _FOLDER}),
            "network": _section(
                {
                    "name": _NETWORK,
                    "reserve_ahead": _integer(0, 1000),
                    "filter": _or_null(_text("^[A-Za-z0-9_.-]+$", "the name of a libvirt nwfilter")),
                    "bridge": _or_null(_BRIDGE),
                }
            ),
            "metadata": _section(
                {
                    "mode": _one_of("managed", "external", "off"),
                    "address": _text("^[0-9]{1,3}(\\.[0-9]{1,3}){3}$", "an IPv4 address"),
                    "port": _integer(1, 65535),
                    "ipv6": _one_of("auto", "off"),
                    "bridge": _BRIDGE,
                    "vendor_data_file": _or_null(_FILE),
                }
            ),
            "images": _section(
                {
                    "fetch_timeout_seconds": _seconds(1, 3600),
                    "max_size_gib": _integer(1, 1024 * 1024),
                    "revalidate_after_hours": _or_null(_seconds(0, 87600)),
                    "max_cache_gib": _or_null(_integer(1, 1024 * 1024)),
                    "evict_after_days": _or_null(_seconds(0.01, 36500)),
                    "prefetch": {"type": "array", "uniqueItems": True, "items": _IMAGE},
                    "publish_directory": _or_null(_FOLDER),
                    "publish_url": _or_null(
                        _text(
                            "^(https?://[^\\s/?#]+|file://)(/[^\\s?#]*)?$",
                            "an http://, https:// or file:/// address of a folder",
                        )
                    ),
                }
            ),
            "disk": _section(
                {
                    "mode": _one_of("overlay", "copy", "raw"),
                    "preallocation": _one_of("off", "metadata", "falloc", "full"),
                    "cache": _one_of("writeback", "none", "writethrough", "directsync"),
                    "aio": _one_of("threads", "native", "io_uring"),
                    "discard": _one_of("unmap", "ignore"),
                    "detect_zeroes": _one_of("off", "on", "unmap"),
                }
            ),
            "guestfs": _section({"inspect": _one_of("never", "auto"), "deadline_seconds": _seconds(10, 3600)}),
            "builder": _section(
                {
                    "workers": _or_null(_integer(1, 256)),
                    "starts_at_once": _integer(1, 256),
                    "max_attempts": _integer(1, 100),
                    "resync_every_seconds": _seconds(1),
                    "orphan_claim_after_seconds": _seconds(1, 30 * 86400),
                    "shutdown_deadline_seconds": _seconds(1, 3600),
                }
            ),
            "volumes": _section({"directory": _or_null(_FOLDER)}),
            "metrics": _section({"listen": _or_null(_text(_LISTEN, "HOST:PORT, such as 127.0.0.1:9179,"))}),
            "log": _section(_LOG),
        }
    ),
}

SCHEDULE: Schema = {
    "$schema": DRAFT,
    "title": "schedule.yaml",
    **_section(
        {
            "etcd": _section(_ETCD),
            "placement": _section(_PLACEMENT),
            "hosts": _section(
                {
                    "libvirt_uri": _text(
                        "^[a-z]+(\\+[a-z]+)?://[^\\s\\x00-\\x1f]*$",
                        "the URI of a host's libvirt, as in qemu+ssh://root@{host}/system",
                    ),
                    "ssh_jump": _or_null(_text("^[^\\s-][^\\s\\x00-\\x1f]*$", "a machine for ssh -J, as in root@{host}")),
                }
            ),
            "defaults": _section(
                {
                    "image": _or_null(_IMAGE),
                    "key_files": {"type": "array", "uniqueItems": True, "items": _FILE},
                    "network": _NETWORK,
                    "restart": _one_of("never", "on-failure", "always"),
                    "metadata": _one_of("optional", "required", "off"),
                    "metadata_hop_limit": _integer(1, 64),
                    "config_drive": _one_of("auto", "openstack", "nocloud", "none"),
                    "allow": {"type": ["array", "null"], "items": _RULE},
                }
            ),
            "policy": _one_of("spread", "pack", "random"),
            "candidates_limit": _integer(1, 10000),
            "wait_seconds": _seconds(0),
            "log": _section(_LOG),
        }
    ),
}

_STRING: Schema = {"type": "string"}
_TIME: Schema = {"type": "string", "description": "ISO 8601, UTC; for people, never compared; empty where unknown"}
_UUID_TEXT: Schema = {"type": "string", "pattern": UUID_PATTERN}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_AMOUNTS: Schema = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}}
_TEXTS: Schema = {"type": "object", "additionalProperties": _STRING}
_SCHEMA_NUMBER: Schema = {"const": 1}
_SPEC_SCHEMA_NUMBER: Schema = {
    "enum": [1, 2, 3, 4, 5],
    "description": "2 where allow, forwards, metadata, config_drive, or more of a card than its network must be understood; "
    "3 where hardware must be; 4 where what is on its disks, what is asked of them, or which it has, must be; "
    "5 where it is to be paused or suspended",
}
_PHASES = (
    "Pending", "Building", "Running", "Rebooting", "Paused", "Suspending", "Suspended", "Stopping", "Stopped",
    "Deleting", "Rescheduling", "Refused", "Failed", "Held", "Quarantined",
)  # fmt: skip


def _record(title: str, required: tuple[str, ...], properties: dict[str, Schema]) -> Schema:
    return {"$schema": DRAFT, "title": title, "type": "object", "required": [*required, "schema"], "properties": properties}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _part(required: tuple[str, ...], properties: dict[str, Schema], **more: Any) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties, **more}


_IP_ADDRESSES = _list(
    _part(("address", "prefix_length"), {"address": _STRING, "prefix_length": _COUNT, "gateway": _STRING}),
    description="of either family",
)
_PORT_NUMBER = _integer(1, 65535)

_APPLIED: Schema = {
    "type": ["object", "null"],
    "required": ["request"],
    "properties": {"request": _COUNT, "problem": _STRING},
}

INSTANCE_SPEC = _record(
    "InstanceSpec",
    ("uuid", "name", "image", "resources"),
    {
        "uuid": _UUID_TEXT,
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
        "image": _part(
            ("url",),
            {
                "url": _STRING,
                "checksum": {"type": ["string", "null"], "pattern": "^sha(256|512):[0-9a-f]+$"},
                "name": {"type": "string", "description": "what it was registered as; for people"},
            },
        ),
        "resources": _AMOUNTS,
        "nics": _list(
            _part(
                (),
                {
                    "network": {"type": "string", "description": "of libvirt; with a bridge the cluster's network, or empty"},
                    "bridge": {"type": "string", "description": "of the host; empty for a libvirt network"},
                    "vlan": _COUNT,
                    "mac": {"type": "string", "description": "empty lets the host choose"},
                    "addresses": _IP_ADDRESSES,
                    "name_servers": _list(_STRING),
                    "mtu": _COUNT,
                },
            )
        ),
        "keys": _list({"type": "string", "description": "an OpenSSH public key, one line"}),
        "user_data_base64": {"type": ["string", "null"]},
        "metadata": {"enum": ["optional", "required", "off"]},
        "metadata_hop_limit": _integer(1, 64),
        "config_drive": {"enum": ["auto", "openstack", "nocloud", "none"]},
        "allow": {
            "type": ["array", "null"],
            "items": {"type": "string", "description": "a rule, such as tcp:22, udp:53@10.0.0.0/8 or icmp"},
            "description": "who may reach it; null: everybody",
        },
        "forwards": _list(
            _part(
                ("host_port", "guest_port"),
                {"host_port": _PORT_NUMBER, "guest_port": _PORT_NUMBER, "protocol": {"enum": ["tcp", "udp"]}},
            )
        ),
        "hardware": _part((), {"disk_bus": {"enum": ["virtio", "sata"]}, "card_model": {"enum": ["virtio", "e1000"]}}),
        "hardware_is_given": {"type": "boolean", "description": "no host looks into the image for what it has drivers for"},
        "disk_content": _part(
            (),
            {
                "resize": {"type": "boolean"},
                "identity": {"type": "boolean"},
                "files": _list(
                    _part(
                        ("path", "content_base64"),
                        {"path": _STRING, "content_base64": _STRING, "mode": _COUNT, "user_id": _COUNT, "group_id": _COUNT},
                    )
                ),
            },
            description="how its disk differs from its image",
        ),
        "volumes": _list(_part(("uuid", "name", "slot"), {"uuid": _UUID_TEXT, "name": _STRING, "slot": _COUNT})),
        "hostname": _STRING,
        "alternates": _list(
            _part(
                ("provider", "allocations"),
                {"provider": _UUID_TEXT, "allocations": {"type": "object", "additionalProperties": _AMOUNTS}},
            )
        ),
        "group": {"type": ["string", "null"]},
        "labels": {"type": "object", "additionalProperties": _STRING, "description": "for people and selectors"},
        "query": {"type": "string", "description": "the query to Placement that chose its host; empty where not known"},
        "group_policy": {"enum": ["anti-affinity", "soft-anti-affinity", "affinity", "soft-affinity"]},
        "restart": {"enum": ["never", "on-failure", "always"]},
        "grace_seconds": _COUNT,
        "desired": {"enum": ["running", "paused", "suspended", "stopped", "deleted"]},
        "protected": {"type": "boolean", "description": "neither destroyed nor rebuilt before that is taken back"},
        "boot_request": {"type": "integer", "minimum": 1},
        "reboot_request": _COUNT,
        "hard_reboot": {"type": "boolean"},
        "hard_stop_request": {**_COUNT, "description": "the boot_request whose guest loses its power instead of being asked"},
        "restore": {"type": "string", "description": "the snapshot that the disk is to go back to"},
        "restore_request": _COUNT,
        "rebuild_request": _COUNT,
        "adopts": {
            "type": ["object", "null"],
            "required": ["cluster_id", "spec_revision"],
            "properties": {"cluster_id": _COUNT, "spec_revision": _COUNT},
        },
        "moves": _list(
            _part(
                ("provider", "host", "at", "reason"),
                {"provider": _UUID_TEXT, "host": _STRING, "at": _TIME, "reason": _STRING, "message": _STRING},
            )
        ),
        "acts": {**_COUNT, "description": "how many times users changed it, for the journal"},
        "request_digest": _STRING,
        "created_at": _TIME,
        "created_by": _STRING,
        "schema": _SPEC_SCHEMA_NUMBER,
    },
)

INSTANCE_STATUS = _record(
    "InstanceStatus",
    ("phase",),
    {
        "phase": {"enum": list(_PHASES)},
        "reason": {"type": "string", "description": "one CamelCase word, empty where the phase says it all"},
        "message": _STRING,
        "progress": {
            "type": ["object", "null"],
            "required": ["step", "done", "total"],
            "properties": {"step": _STRING, "done": _COUNT, "total": _COUNT, "unit": _STRING},
        },
        "spec_revision": _COUNT,
        "boot_request": _COUNT,
        "attempts": _COUNT,
        "failure": _STRING,
        "failure_message": _STRING,
        "booted": _COUNT,
        "addresses": _list(
            _part(
                ("network", "mac", "address"),
                {
                    "network": _STRING,
                    "mac": _STRING,
                    "address": {"type": "string", "description": "empty where it is not known (yet)"},
                    "prefix_length": _COUNT,
                    "gateway": _STRING,
                    "more": _IP_ADDRESSES,
                    "bridge": _STRING,
                    "vlan": _COUNT,
                    "source": {"enum": ["", "dhcp", "static", "learned"]},
                    "name_servers": _list(_STRING),
                    "mtu": _COUNT,
                },
            )
        ),
        "volumes": _list(_UUID_TEXT),
        "ready": {
            "type": ["object", "null"],
            "required": ["at"],
            "properties": {"at": _TIME, "message": _STRING, "host_keys": _list(_STRING), "boot_request": _COUNT},
        },
        "restored": _APPLIED,
        "rebuilt": _APPLIED,
        "notes": _list({"type": "string", "description": "what is not as asked for although it runs, one line"}),
        "in_force": {
            "type": "object",
            "additionalProperties": _COUNT,
            "description": "VCPU and MEMORY_MB that the guest runs with until its next start, where others are asked for",
        },
        "events": _list(
            _part(("at", "step", "took_ms"), {"at": _TIME, "step": _STRING, "took_ms": _COUNT, "message": _STRING}), maxItems=20
        ),
        "happened": {**_COUNT, "description": "how many times its host wrote into the journal of it"},
        "updated_at": _TIME,
        "schema": _SCHEMA_NUMBER,
    },
)

HOST_RECORD = _record(
    "HostRecord",
    ("name", "boot_id", "incarnation", "libvirt_host_uuid", "libvirt_uri"),
    {
        "name": _STRING,
        "boot_id": _STRING,
        "incarnation": _UUID_TEXT,
        "libvirt_host_uuid": _STRING,
        "libvirt_uri": _STRING,
        "state": {"enum": ["Ready", "Degraded"]},
        "message": _STRING,
        "versions": _TEXTS,
        "capacity": _AMOUNTS,
        "reserved": _AMOUNTS,
        "virt_type": _STRING,
        "since": _TIME,
        "schema": _SCHEMA_NUMBER,
    },
)

NETWORK_RECORD = _record(
    "NetworkRecord",
    ("name", "bridge", "subnets"),
    {
        "name": _STRING,
        "bridge": {"type": "string", "description": "of every host whose guests can be on it"},
        "subnets": _list(
            _part(
                ("cidr", "first", "last"),
                {"cidr": _STRING, "first": _STRING, "last": _STRING, "gateway": {"type": "string", "description": "or empty"}},
            ),
            minItems=1,
            maxItems=2,
        ),
        "vlan": {"type": "integer", "minimum": 0, "maximum": 4094},
        "name_servers": _list(_STRING),
        "mtu": _COUNT,
        "created_at": _TIME,
        "created_by": _STRING,
        "schema": _SCHEMA_NUMBER,
    },
)

IMAGE_RECORD = _record(
    "ImageRecord",
    ("name", "url", "checksum"),
    {
        "name": _STRING,
        "url": _STRING,
        "checksum": {"type": "string", "pattern": "^sha(256|512):[0-9a-f]+$"},
        "checksum_url": {"type": "string", "description": "where it was read; for people, empty where it was given"},
        "min_disk_gib": _COUNT,
        "min_memory_mib": _COUNT,
        "user": {"type": "string", "description": "whom to log in as; for people, empty where unknown"},
        "properties": {
            **_TEXTS,
            "description": "by Glance's names, such as hw_disk_bus; refuse a request where one is unknown",
        },
        "created_at": _TIME,
        "created_by": _STRING,
        "schema": _SCHEMA_NUMBER,
    },
)

VOLUME_SPEC = _record(
    "VolumeSpec",
    ("uuid", "name", "size_gib"),
    {
        "uuid": _UUID_TEXT,
        "name": _STRING,
        "size_gib": {"type": "integer", "minimum": 1},
        "desired": {"enum": ["present", "deleted"]},
        "attached_to": {"type": ["string", "null"], "description": "the instance that may use it; its host says null again"},
        "request_digest": _STRING,
        "created_at": _TIME,
        "created_by": _STRING,
        "schema": _SCHEMA_NUMBER,
    },
)

VOLUME_STATUS = _record(
    "VolumeStatus",
    ("phase",),
    {
        "phase": {"enum": ["Pending", "Available", "Attached", "Detaching", "Deleting", "Refused", "Missing"]},
        "message": _STRING,
        "spec_revision": _COUNT,
        "was_made": {"type": "boolean"},
        "updated_at": _TIME,
        "schema": _SCHEMA_NUMBER,
    },
)

RECORDS: dict[str, Schema] = {
    s["title"]: s
    for s in (INSTANCE_SPEC, INSTANCE_STATUS, HOST_RECORD, NETWORK_RECORD, IMAGE_RECORD, VOLUME_SPEC, VOLUME_STATUS)
}
