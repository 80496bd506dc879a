"""Command lines of the daemons: argparse whose errors are one line, as all our errors are."""

from __future__ import annotations

import argparse
import importlib.metadata
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """argparse, with ``--version``; a wrong command line is one line on standard error and exit code 2."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument(
            "--version", action="version", version=f"{prog} {importlib.metadata.version('etcd-compute')}",
            help="print the version and end",
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message.replace(chr(10), ' ')}; see: {self.prog} --help\n")
