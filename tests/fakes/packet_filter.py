"""The packet filter in memory: it keeps the texts that it was told, and reads only which tables they make or take away."""

from __future__ import annotations

import re

from common.errors import EcomputeError
from ecompute.nft import FirewallMissing


class FakePacketFilter:
    """Tables by family, and what was asked of it."""

    def __init__(self) -> None:
        self.tables: dict[str, str] = {}
        self.let: dict[str, bool] = {}
        self.loads = self.listings = 0
        self.failure: EcomputeError | None = None
        self.refuses = ""  # a text with this in it is refused, as nft does what it cannot read
        self.trials = 0
        self._generation = 1
        self.rules, self.rulesets = "", 0  # of others

    def load(self, script: str, *, is_trial: bool = False) -> None:
        if self.failure:
            raise self.failure
        self.trials += is_trial
        if self.refuses and self.refuses in script:
            raise FirewallMissing(f"the packet filter refused a rule: {self.refuses}")
        if is_trial:
            return
        self.loads, self._generation = self.loads + 1, self._generation + 1
        for family in re.findall(r"^(?:delete|flush) table (\S+)", script, re.MULTILINE):
            self.tables.pop(family, None)
        if begun := re.search(r"^table (\S+) etcd_compute \{\n(.*)", script, re.MULTILINE | re.DOTALL):
            self.tables[begun[1]] = begun[2]

    def listing(self, family: str) -> str:
        if self.failure:
            raise self.failure
        self.listings += 1
        return self.tables.get(family, "")

    def ruleset(self) -> str | None:
        self.rulesets += 1
        return self.rules

    def generation(self) -> int:
        return self._generation

    def let_through(self, family: str, *, is_wanted: bool) -> bool:
        is_changed = self.let.get(family, False) != is_wanted
        self.let[family] = is_wanted
        return is_changed

    def flush(self) -> None:
        """As ``nft flush ruleset`` does."""
        self.tables.clear()
        self.let.clear()
        self._generation += 1
