"""The options of ``image``."""

from __future__ import annotations

from eschedule.command_line.parser import Parser, Verbs, json_option, verb, waiting


def add_image(verbs: Verbs) -> None:
    parser = verb(
        verbs, "image", "register images under names, list, show and remove them, have hosts fetch them",
        "eschedule create 'resources=…' debian-12",
    )  # fmt: skip
    actions = parser.add_subparsers(
        dest="action", metavar="add|create|list|show|rm|prefetch|cache", parser_class=Parser, required=True
    )
    _add_image_add(actions)
    _add_image_create(actions)
    json_option(verb(actions, "list", "list the images that have a name", "eschedule image list"))
    show = verb(actions, "show", "show an image: where it is, its checksum, what it needs", "eschedule image show debian-12")
    show.add_argument("name", metavar="NAME")
    json_option(show)
    remove = verb(actions, "rm", "forget a name; instances that were made of it stay", "eschedule image rm debian-12")
    remove.add_argument("name", metavar="NAME")
    _add_host_actions(actions)


def _add_host_actions(actions: Verbs) -> None:
    prefetch = verb(
        actions, "prefetch", "have hosts fetch an image before a guest needs it",
        "eschedule image prefetch debian-12 --hosts node1,node2",
    )  # fmt: skip
    prefetch.add_argument("image", metavar="NAME|URL", help="a registered name, an http(s):// or file:// URL, or a path there")
    prefetch.add_argument("--checksum", metavar="ALGORITHM:HEX", help="sha256: or sha512: of what is at a URL")
    waiting(prefetch, "the fetch", has_reason=False)
    cache = verb(actions, "cache", "list the images that hosts have, and what uses them", "eschedule image cache")
    for parser in (prefetch, cache):
        parser.add_argument("--hosts", metavar="NAME,NAME", help="these only (default: all that have a heartbeat)")
        json_option(parser)


def _add_image_add(actions: Verbs) -> None:
    parser = verb(
        actions, "add", "give an image a name, which means the same bytes for as long as it is there",
        "eschedule image add debian-12 https://images.example.org/debian-12.qcow2 --checksum-url SHA512SUMS --user debian",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="what --image asks for")
    parser.add_argument("url", metavar="URL", help="http(s):// or file:// URL, or an absolute path on every host")
    sums = parser.add_mutually_exclusive_group(required=True)
    for algorithm in ("sha256", "sha512"):
        sums.add_argument(f"--{algorithm}", metavar="HEX", help="what the image's bytes come to")
    sums.add_argument("--checksum-url", metavar="URL", help="read it there, now; a mere name is looked for beside the image")
    _described(parser)
    json_option(parser)


def _add_image_create(actions: Verbs) -> None:
    parser = verb(
        actions, "create", "make an image of an instance's disk, while it runs, and give it a name",
        "eschedule image create web-2026-11 --from web-1",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="what --image asks for")
    parser.add_argument("--from", dest="source", metavar="INSTANCE", required=True, help="name or uuid; it runs on, or is off")
    seal = parser.add_mutually_exclusive_group()
    seal.add_argument(
        "--seal", dest="seals", action="store_true", default=True,
        help="take the guest's own identity, host keys and logs out of the image (default)",
    )  # fmt: skip
    seal.add_argument("--no-seal", dest="seals", action="store_false", help="an exact copy: its guests are the same to others")
    _described(parser)
    json_option(parser)


def _described(parser: Parser) -> None:
    """What an image needs, and what people are told of it."""
    parser.add_argument("--min-disk", metavar="GB", help="refuse requests for less DISK_GB")
    parser.add_argument("--min-memory", metavar="MB", help="refuse requests for less MEMORY_MB")
    parser.add_argument("--user", metavar="NAME", help="whom to log in as; for people")
    parser.add_argument(
        "--property", metavar="KEY=VALUE", action="append",
        help="hw_disk_bus=virtio|sata, hw_vif_model=virtio|e1000, os_resize=true|false, os_inject_identity=true|false,"
        " os_distro=TEXT (for people); may be repeated",
    )  # fmt: skip
