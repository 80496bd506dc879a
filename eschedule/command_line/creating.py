"""The options of ``create``."""

from __future__ import annotations

from eschedule.command_line.instances import reaching
from eschedule.command_line.needs import needs
from eschedule.command_line.parser import EXAMPLE, Verbs, json_option, verb, waiting


def add_create(verbs: Verbs) -> None:
    parser = verb(
        verbs, "create", "create an instance and wait until it runs",
        f"eschedule create '{EXAMPLE}' https://images.example.org/debian.qcow2 --name web-1 --key ~/.ssh/id_ed25519.pub\n"
        "  eschedule create --cpus 2 --memory 4G --disk 20G debian-12 --name 'web-{n}' --count 3 --zone a --label app=web\n"
        "  eschedule create --like web-1 --memory 8G --name web-2\n"
        "  eschedule create --file vm.yaml --dry-run",
    )  # fmt: skip
    parser.mixes = True
    parser.add_argument("query", metavar="'resources=…'", nargs="?", help="what it needs, as a query string of Placement's")
    needs(parser)
    parser.add_argument(
        "--like", metavar="INSTANCE", help="what it needs, its image and options as with that one, but for what is said here"
    )
    parser.add_argument(
        "-f", "--file", metavar="FILE", help="what is asked for, in YAML (docs/vm-file.md); options here come first"
    )
    parser.add_argument("--dry-run", action="store_true", help="say where it would go and what would be written; take nothing")
    parser.add_argument("image_argument", metavar="IMAGE", nargs="?", help="like --image")
    parser.set_defaults(user_data_given=None)
    parser.add_argument(
        "--image", help="a registered name (eschedule image), an http(s):// or file:// URL, or an absolute path"
    )
    parser.add_argument("--checksum", metavar="sha256:HEX", help="what the image's bytes must come to; sha512: is taken too")
    parser.add_argument("--name", help="1 to 63 of a-z, 0-9 and -; unique (default: vm- and eight digits of the uuid)")
    parser.add_argument("--count", metavar="N", help="so many instances, all or none, 1 to 1000: NAME-1 … NAME-N, or {n} in it")
    parser.add_argument("--group", metavar="NAME", help="of instances that are kept apart, or together, as --policy says")
    parser.add_argument(
        "--policy", metavar="POLICY",
        help="of the group: anti-affinity (each on a host of its own; the default), affinity (all on one host), or soft-… of"
        " these, which yield where there is no other room",
    )  # fmt: skip
    parser.add_argument(
        "--label", metavar="KEY=VALUE", action="append", help="to find it by (list -l KEY=VALUE); may be repeated"
    )
    parser.add_argument("--hostname", metavar="NAME", help="what the guest calls itself (default: its name)")
    parser.add_argument(
        "--key", metavar="FILE|NAME", action="append", help="public ssh key to let in, or one that is kept; may be repeated"
    )  # fmt: skip
    parser.add_argument("--user-data", metavar="FILE", help="handed to the guest's cloud-init; at most 64 KiB")
    parser.add_argument(
        "--inject", metavar="SRC:DST[:MODE[:UID[:GID]]]", action="append",
        help="write this machine's file SRC to DST on the guest's disk before it boots (mode 0644, of root, unless said);"
        " 64 KiB in all; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--inject-identity", action="store_true",
        help="write host name, keys and network to the disk of an image that has no cloud-init to ask for them",
    )  # fmt: skip
    parser.add_argument(
        "--resize",
        action="store_true",
        help="grow the root's partition and file system, where the image does not do so itself",
    )
    parser.add_argument(
        "--nic", metavar="WHERE", action="append", dest="nics",
        help="a network card: default, network=NAME (of the cluster, see network add, else libvirt's on the host) or"
        " bridge=NAME[,vlan=N]; more, with commas: address=IP[/LENGTH] (once for each family), gateway=, dns=, mac=, mtu=;"
        " may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--network", metavar="NAME", action="append", dest="nics", type="network={}".format, help="short for --nic network=NAME"
    )
    reaching(parser)
    parser.add_argument(
        "--publish", metavar="HOSTPORT:GUESTPORT", action="append",
        help="have a port of the host lead to one of the guest's; udp: before it, or /udp behind; may be repeated",
    )  # fmt: skip
    parser.add_argument("--restart", metavar="POLICY", help="when it goes down by itself: never, on-failure or always")
    parser.add_argument(
        "--grace-seconds", metavar="N", help="how long it has to power off when asked, before its plug is pulled (default: 30)"
    )
    parser.add_argument("--uuid", help="the instance's uuid; the same request with the same uuid makes one instance")
    parser.add_argument("--request-id", metavar="TEXT", help="like --uuid, with a text of your own")
    parser.add_argument("--timings-file", metavar="PATH", help="write what each part of the request took, as JSON")
    waiting(parser, "the instance")
    parser.add_argument(
        "--wait", metavar="UNTIL",
        help="running (the default), or ready: until the guest itself says so, over its metadata service",
    )  # fmt: skip
    json_option(parser)
