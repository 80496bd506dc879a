"""The command line of ``md-server``. Imports nothing that takes time: the manual is made from it."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.arguments import OneLineParser


def parser() -> argparse.ArgumentParser:
    made = OneLineParser("md-server", "Tell the guests of this host who they are: EC2 and OpenStack metadata.")
    add = made.add_argument
    add("--config", type=Path, metavar="FILE", help="compute.yaml; else it is searched where ecompute searches it")
    add("--state-dir", type=Path, metavar="DIR", help="in place of paths.state_dir")
    add("--run-dir", type=Path, metavar="DIR", help="in place of paths.run_dir")
    add("--listen", metavar="ADDRESS:PORT", help="in place of metadata.address and .port; touches no interface")
    add("--bridge", metavar="NAME", help="put the address on this bridge, in place of metadata.bridge; '' for none")
    add("--check-config", action="store_true", help="say whether the configuration is valid, and end")
    add(
        "--check-external",
        action="store_true",
        help="end with 0 where metadata.mode is external, else with 1: for service units",
    )
    add("--remove-address", action="store_true", help="take the address from the bridge, and end")
    return made
