"""``ecompute doctor``: looks at everything that a host needs to run guests, and says of each how it is, why, and what cures it.

It works beside an ecompute that runs, and where next to nothing works: without libvirt's bindings, etcd, Placement or a
configuration that can be read. It changes nothing but for probes that it takes away again, unless ``--fix`` asks for what is
etcd-compute's own. One small module for each field; ``scene`` has what they share, ``program`` the command line.
"""

from ecompute.doctor.program import command, examine, examine_and_cure

__all__ = ["command", "examine", "examine_and_cure"]
