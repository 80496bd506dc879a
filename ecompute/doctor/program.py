"""The command line of ``ecompute doctor``, and ``examine`` for who wants the report alone."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from common import checkup
from common.arguments import OneLineParser
from common.checkup import Report, Result, failure, ok
from common.config import ComputeConfig, load_compute
from common.errors import ConfigError
from ecompute.doctor import daemon, guestfs, hypervisor, leftovers, machine, network, services, storage
from ecompute.doctor.scene import Scene
from ecompute.vendor_data import read_vendor_data

FIELDS = (machine, hypervisor, network, storage, guestfs, services, daemon, leftovers)


def command(config_file: Path | None, arguments: Sequence[str]) -> int:
    """Look, print the report; with ``--fix`` cure what is ours and look again. 0 where nothing failed, 1 with a failure."""
    parser = OneLineParser(
        "ecompute doctor", "Checks everything that a host needs to run guests; changes nothing without --fix."
    )
    parser.add_argument("--fix", action="store_true", help="cure what is etcd-compute's own, then look again")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(list(arguments))
    logging.getLogger().addHandler(logging.NullHandler())  # what parts of ecompute log is in the report
    checkup.keep_quiet()
    report, fixed = _looked(config_file, fixes=options.fix)
    sys.stdout.write(report.to_json(fixed) if options.json else report.text(fixed))
    return report.exit_code


def examine(config: ComputeConfig, *, is_joining: bool = False) -> Report:
    """What a host with *config* lacks. Takes at most about 10 s, or the proof of KVM; raises nothing for what it finds.

    Args:
        is_joining: ecompute and md-server are started afterwards, so that it is no fault that they do not run.
    """
    with Scene(config, is_joining=is_joining) as scene:
        return _examined(scene)


def examine_and_cure(config: ComputeConfig, *, is_joining: bool = False) -> tuple[Report, list[str]]:
    """As ``examine``; what is etcd-compute's own is cured, and then looked at again. The last report, and what was done."""
    with Scene(config, is_joining=is_joining) as scene:
        report = _examined(scene)
        fixed = list(checkup.cure(report))
    return (examine(config, is_joining=is_joining) if fixed else report), fixed


def _looked(config_file: Path | None, *, fixes: bool) -> tuple[Report, list[str]]:
    try:
        config = load_compute(config_file)
        read_vendor_data(config.metadata.vendor_data_file)
    except ConfigError as error:
        return _without_configuration(error), []
    return examine_and_cure(config) if fixes else (examine(config), [])


def _examined(scene: Scene) -> Report:
    found = checkup.run([check for field in FIELDS for check in field.checks(scene)])
    return Report((_configuration(scene.config), *found.results))


def _configuration(config: ComputeConfig) -> Result:
    if config.source is None:
        return ok("configuration", "no compute.yaml found: every key has its default")
    return ok("configuration", f"{config.source} can be read and holds nothing wrong")


def _without_configuration(error: ConfigError) -> Report:
    """What can be said of the machine alone: of services nobody knows where they are."""
    wrong = [failure("configuration", line, "correct it; ecompute --check-config") for line in str(error).splitlines()]
    with Scene(ComputeConfig()) as scene:
        found = checkup.run([check for field in (machine, hypervisor) for check in field.checks(scene)])
    rest = failure("services", "not looked at, since the configuration says where they are", "correct the configuration")
    return Report((*wrong, *found.results, rest))
