"""The command line of ``ecompute``; its verbs have options of their own (``ecompute.doctor``, ``ecompute.join``).

Imports nothing that takes time, and nothing that is not of this project: the manual is made from it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.arguments import OneLineParser


def parser() -> argparse.ArgumentParser:
    made = OneLineParser(
        "ecompute", "Runs the guests of this hypervisor: what etcd asks for, Placement granted and libvirt can."
    )
    made.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="compute.yaml to use (default: ./, ~/.config/etcd-compute/, /etc/etcd-compute/)",
    )
    action = made.add_mutually_exclusive_group()
    action.add_argument("--check-config", action="store_true", help="check the configuration, print what is in force, exit")
    action.add_argument(
        "--take-provider",
        action="store_true",
        help="this machine replaces the one that the provider belonged to, which is gone for good",
    )
    action.add_argument(
        "--leave",
        action="store_true",
        help="take this host out of the cluster: its provider, keys and DHCP entries; refused while it has guests",
    )
    action.add_argument(
        "--prefetch",
        nargs="*",
        metavar="NAME|URL",
        help="fetch images before a guest needs them, beside a running ecompute, too; without any: images.prefetch",
    )
    return made
