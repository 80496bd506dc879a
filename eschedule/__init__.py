"""The command line and library that ask for instances: Placement finds and claims a host, etcd carries the request.

``Cluster`` is the library. It is imported only where it is asked for: the command line starts faster without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eschedule.cluster import Cluster as Cluster

__all__ = ["Cluster"]


def __getattr__(name: str) -> Any:
    if name != "Cluster":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from eschedule.cluster import Cluster  # noqa: PLC0415 - see above

    return Cluster
