"""What a node's ecompute says of itself: its metrics, read over the network, and its log from some moment on."""

from __future__ import annotations

import re
import urllib.request

from tests.support.cluster import Node

METRICS_PORT = 9179
LISTEN = {"listen": f"0.0.0.0:{METRICS_PORT}"}


def metrics(node: Node) -> dict[str, float]:
    """Every sample by its name with labels, as it is written; nothing where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://{node.host.address}:{METRICS_PORT}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def is_up(node: Node, service: str) -> bool:
    return metrics(node).get(f'ecompute_service_up{{service="{service}"}}') == 1.0


class LogMark:
    """What *node* logs from here on, but for what only a debugging person reads."""

    def __init__(self, node: Node) -> None:
        self._log = node.log
        self._from = self._log.stat().st_size if self._log.exists() else 0

    def lines(self) -> list[str]:
        with self._log.open("rb") as log:
            log.seek(self._from)
            text = log.read().decode(errors="replace")
        return [line for line in text.splitlines() if "level=debug" not in line]

    def having(self, pattern: str) -> list[str]:
        return [line for line in self.lines() if re.search(pattern, line)]
