"""The options of ``network``."""

from __future__ import annotations

from eschedule.command_line.parser import Parser, Verbs, json_option, verb


def add_network(verbs: Verbs) -> None:
    parser = verb(
        verbs, "network", "make, list, show and remove networks that hosts share, with a pool of addresses",
        "eschedule network add lan --bridge br0 --subnet 10.0.0.0/24 --gateway 10.0.0.1",
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="add|list|show|rm", parser_class=Parser, required=True)
    _add_network_add(actions)
    json_option(verb(actions, "list", "list the networks, and how many of their addresses are used", "eschedule network list"))
    show = verb(actions, "show", "show a network, and who has which of its addresses", "eschedule network show lan")
    show.add_argument("name", metavar="NAME")
    json_option(show)
    remove = verb(actions, "rm", "remove a network that nobody has an address of", "eschedule network rm lan")
    remove.add_argument("name", metavar="NAME")


def _add_network_add(actions: Verbs) -> None:
    parser = verb(
        actions, "add", "make a network of a bridge that the hosts have under the same name",
        "eschedule network add lan --bridge br0 --subnet 10.0.0.0/24 --gateway 10.0.0.1 --range 10.0.0.50-10.0.0.99",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="what --nic network=NAME asks for")
    parser.add_argument("--bridge", metavar="NAME", required=True, help="the bridge, which each host that is to be used has")
    parser.add_argument(
        "--subnet", metavar="CIDR", action="append", required=True, help="its addresses; twice, once for each family, for both"
    )
    parser.add_argument("--gateway", metavar="IP", action="append", help="told the guests; of the subnet of its family")
    parser.add_argument(
        "--range", metavar="FIRST-LAST", action="append", help="what of the subnet of its family is for guests (default: all)"
    )
    parser.add_argument("--vlan", metavar="N", help="802.1Q tag on the bridge, 1 to 4094")
    parser.add_argument("--dns", metavar="IP", action="append", help="name server told the guests; may be repeated")
    parser.add_argument("--mtu", metavar="BYTES", help="largest packet (default: the bridge's)")
    json_option(parser)
