"""Many short jobs while workers, their jobs and the broker are killed at random: all end, none twice."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests import servers
from tests.faults import invariants
from tests.faults.cluster import WAIT_SECONDS, Cluster, cluster
from tests.faults.script import Script

MANY_ATTEMPTS = 100  # every job is to succeed, however often its worker is killed
STEP_SECONDS = 0.01


@dataclass
class Chaos:
    """One blow every `pause_seconds`, give or take half of it, until the jobs have ended."""

    cluster: Cluster
    redis: servers.Server
    start_redis: Callable[[int], servers.Server]
    pause_seconds: float
    chance: random.Random
    blows: Counter[str] = field(default_factory=Counter)

    def strike_until(self, over: Future[None]) -> None:
        """In the thread that has started the processes: the kernel ends with it what it has started meanwhile."""
        self._over = over
        kinds: tuple[Callable[[], None], ...] = (self.worker, self.worker, self.runner, self.broker, self.freeze)
        while not self._pause(self.pause_seconds * self.chance.uniform(0.5, 1.5)):
            self.chance.choice(kinds)()

    def _pause(self, seconds: float) -> bool:
        """Whether it is over."""
        return bool(wait([self._over], timeout=seconds).done)

    def _alive(self) -> list[psutil.Popen]:
        return [worker for worker in self.cluster.workers if worker.is_running()]

    def worker(self) -> None:
        """With all that it started, half of the time: then nothing has the chance to notice."""
        victim = self.chance.choice(self._alive())
        everything = [victim, *(victim.children(recursive=True) if self.chance.random() < 0.5 else ())]
        for process in everything:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        victim.wait()
        self.cluster.start_worker()
        self.blows["workers killed"] += 1

    def runner(self) -> None:
        servers = [child for worker in self._alive() for child in worker.children()]
        runners = [runner for server in servers for runner in server.children()]
        if runners:
            with suppress(psutil.NoSuchProcess):
                self.chance.choice(runners).kill()
            self.blows["jobs' processes killed"] += 1

    def broker(self) -> None:
        self.redis.process.kill()
        self.redis.process.wait()
        self._pause(self.chance.uniform(0, 1))
        self.redis = self.start_redis(self.redis.port)
        self.blows["brokers killed"] += 1

    def freeze(self) -> None:
        """Longer than its lease, then on."""
        victim = self.chance.choice(self._alive())
        victim.suspend()
        self._pause(float(self.cluster.environment["ELDER_LEASE_SECONDS"]) * 1.5)
        with suppress(psutil.NoSuchProcess):
            victim.resume()
        self.blows["workers frozen"] += 1


@pytest.mark.parametrize(
    ("jobs", "workers", "pause_seconds"),
    [(60, 2, 2.0), pytest.param(2000, 4, 3.0, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])],
    ids=["60 jobs", "2,000 jobs"],
)
def test_all_end_and_none_twice(
    tmp_path: Path, postgres_database: str, capsys: pytest.CaptureFixture[str], jobs: int, workers: int,
    pause_seconds: float,
) -> None:  # fmt: skip
    with ExitStack() as stack:

        def start_redis(port: int) -> servers.Server:
            return stack.enter_context(servers.redis_server(port))

        redis = start_redis(servers.free_port())
        made = stack.enter_context(cluster(tmp_path, postgres_database, redis.url))
        made.workers_started(workers)
        seed = random.randrange(2**32)
        chaos = Chaos(made, redis, start_redis, pause_seconds, random.Random(seed))
        started = time.monotonic()
        with ThreadPoolExecutor(1) as caller:
            over = caller.submit(submit_and_wait, made, jobs)
            chaos.strike_until(over)
            over.result()
        seconds = time.monotonic() - started
        counts = invariants.check(made)
        attempts = len(made.gates.executions())
        made.stop()
    with capsys.disabled():
        print(
            f"\n{jobs} jobs in {seconds:.0f} s with seed {seed}: {dict(counts)}; {attempts} attempts were begun; "
            f"{dict(chaos.blows)}"
        )
    assert counts == {"succeeded": jobs}


def submit_and_wait(made: Cluster, jobs: int) -> None:
    ids = [submit(made, number) for number in range(jobs)]
    made.patience_seconds = 60 + jobs
    for job_id in ids:
        made.ended(job_id)
    made.patience_seconds = WAIT_SECONDS


def submit(made: Cluster, number: int) -> str:
    """A hint follows one in ten, as if the others' were lost."""
    job_id = made.submit(Script(step_seconds=STEP_SECONDS), max_attempts=MANY_ATTEMPTS)
    if number % 10 == 0:
        made.hint()
    return job_id
