"""What a run tells its caller, and how the caller ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from elder_core.errors import Cancelled
from elder_core.spec import Progress, Stage


@dataclass
class Monitor:
    """Reports each step to `progress`, asks `cancelled` at each, and keeps what the report says of the run itself.

    `stage_seconds` is the time spent in each stage that was entered; `warnings` are sentences for people;
    `earlier_peak_bytes` is the most memory held before its counter was last set back, 0 where it never was.
    """

    progress: Callable[[Progress], None] = lambda _: None
    cancelled: Callable[[], bool] = lambda: False
    stage: Stage = Stage.RESOLVING
    stage_seconds: dict[Stage, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    earlier_peak_bytes: int = 0

    @contextmanager
    def entered(self, stage: Stage) -> Iterator[None]:
        """Report steps as `stage` until the context is left, and time it."""
        self.stage = stage
        started = time.monotonic()
        self.step(0, 0)
        yield
        self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + time.monotonic() - started

    def step(self, step: int, total: int, **metrics: float) -> None:
        """Report `step` of `total` in the present stage.

        Raises:
            Cancelled: the caller wants the run to end.
        """
        self.progress(Progress(stage=self.stage, step=step, total=total, metrics=metrics))
        self.check_cancelled()

    def check_cancelled(self) -> None:
        """Raises:
        Cancelled: the caller wants the run to end.
        """
        if self.cancelled():
            raise Cancelled

    def warn(self, sentence: str) -> None:
        """Keep a sentence for people, once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)
