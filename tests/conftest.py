"""Fixtures that every folder of tests shares come from ``tests/support``: each module brings its own, and is named here."""

import signal

from hypothesis import settings

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long one example takes says how busy the machine is, nothing about the code.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

pytest_plugins = [
    "tests.support.databases",
    "tests.support.etcd",
    "tests.support.hosts",
    "tests.support.linux_disks",
    "tests.support.no_skips",
    "tests.support.placement",
    "tests.support.eschedule",
    "tests.support.deployment",  # last: it builds on the others
]
