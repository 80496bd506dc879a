"""Who is asking: the source address of a request to the guest that has it. The only place where md_server reads documents.

Read afresh for every request, so that there is nothing to go stale and ecompute need not tell anybody of a change.
"""

from __future__ import annotations

from common.errors import InvalidSpec
from common.metadata import MetadataStore, normal_address
from md_server.guest import Guest, Host


class Lookup:
    """The guests whose documents are in *store*."""

    def __init__(self, store: MetadataStore, host: Host) -> None:
        self._store, self._host = store, host

    def guest_at(self, address: str) -> Guest | None:
        """The guest that has *address*, None where none has it.

        Raises:
            EcomputeError: there is a document for it, and it cannot be read.
        """
        try:
            normal = normal_address(address)
        except InvalidSpec:
            return None
        document = self._store.by_address(normal)
        return None if document is None else Guest(document, self._host)
