"""What a run tells its caller, how the caller ends it, and what it keeps to go on from."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from elder_core.errors import Cancelled
from elder_core.journal import Entry, Journal
from elder_core.spec import Progress, Stage

RUN = "run"  # of a page's facts: what the monitor itself goes on from


@dataclass
class Monitor:
    """Reports each step to `progress`, asks `cancelled` at each, and keeps what the report says of the run itself.

    `stage_seconds` is the time spent in each stage that was entered; `warnings` are sentences for people;
    `earlier_peak_bytes` is the most memory held before its counter was last set back, 0 where it never was;
    `resumptions` is how often the run was ended and went on from its journal.
    """

    progress: Callable[[Progress], None] = lambda _: None
    cancelled: Callable[[], bool] = lambda: False
    stage: Stage = Stage.RESOLVING
    stage_seconds: dict[Stage, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    earlier_peak_bytes: int = 0
    journal: Journal = field(default_factory=Journal)
    resumptions: int = 0
    _entered_at: float = field(default_factory=time.monotonic)
    _pages: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def entered(self, stage: Stage) -> Iterator[None]:
        """Report steps as `stage` until the context is left, and time it."""
        self.stage = stage
        self._pages = Counter()
        self._entered_at = time.monotonic()
        self.step(0, 0)
        yield
        self.stage_seconds[stage] = self._seconds()

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

    def page(self, what: str) -> Page:
        """The journal's page for what is worked out next: the same one whenever the same run comes by here."""
        self._pages[what] += 1
        return Page(self, f"{self.stage}-{what}-{self._pages[what]}")

    def kept(self) -> dict[str, object]:
        """What the run needs of its monitor to go on."""
        return {"seconds": self._seconds(), "warnings": self.warnings, "resumptions": self.resumptions}

    def go_on(self, kept: Mapping[str, Any]) -> None:
        """Count the time, and keep the warnings, of the run that was ended."""
        self.stage_seconds[self.stage] = max(0.0, kept["seconds"] - (time.monotonic() - self._entered_at))
        for sentence in kept["warnings"]:
            self.warn(sentence)
        self.resumptions = max(self.resumptions, kept["resumptions"] + 1)

    def _seconds(self) -> float:
        return self.stage_seconds.get(self.stage, 0.0) + time.monotonic() - self._entered_at


class Page:
    """One page of a run's journal, and `recalled`: what stood there when the run came by, None if nothing."""

    def __init__(self, monitor: Monitor, name: str) -> None:
        self._monitor = monitor
        self._name = name
        self.recalled = monitor.journal.recall(name)
        if self.recalled is not None:
            monitor.go_on(self.recalled.facts[RUN])

    def offer(self, make: Callable[[], Entry]) -> None:
        """Keep what is being worked out, if it is time; to be called between two steps of it, before Monitor.step."""
        if self._monitor.journal.due():
            self.keep(make())

    def keep(self, entry: Entry) -> None:
        """Keep what was worked out."""
        facts = {**entry.facts, RUN: self._monitor.kept()}
        self._monitor.journal.keep(self._name, Entry(facts, entry.tensors))
