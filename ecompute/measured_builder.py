"""The builder with a stopwatch: how long each step takes, and which ones fail, for the metrics. It changes nothing."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from common.model import InstanceSpec
from ecompute.builder import Builder, Hand
from ecompute.machine import Facts, Step
from ecompute.metrics import Metrics
from ecompute.world import World


class MeasuredBuilder(Builder):
    """A ``Builder`` whose steps are counted in *metrics*."""

    def __init__(self, world: World, *, metrics: Metrics, **builder: Any) -> None:
        super().__init__(world, **builder)
        self._metrics = metrics

    def run(self, step: Step, uuid: UUID, spec: InstanceSpec | None, facts: Facts, hand: Hand) -> Facts:
        began = time.monotonic()
        try:
            after = super().run(step, uuid, spec, facts, hand)
        except Exception as error:
            self._metrics.step_failed(step, type(error).__name__)
            raise
        self._metrics.step_done(step, time.monotonic() - began)
        return after
