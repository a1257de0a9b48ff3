"""How long a job waits on an idle service before its own process begins.

Two questions about the real service, in production's set-up (PostgreSQL, Redis, API, one worker with torch preloaded):

1. From the commit of a job to the first event of its process, when a hint tells the worker. Bar: 0.3 s at the median.
2. The same while the broker is down, when the worker finds the job by its own timer. Bar: one claim interval, and the
   time that the start itself takes by a hint.

All times are the database's: of `job.created` and of the first `job.stage`. Servers are started for the run and are
gone afterwards. Writes `benchmarks/results/job_start.json`; exits with 1 if a bar is missed. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from elder_core import devices  # noqa: E402
from elder_core.evaluation.environment import environment  # noqa: E402
from elder_core.spec import Environment  # noqa: E402
from elder_service.settings import Settings  # noqa: E402
from tests import servers  # noqa: E402
from tests.integration.service import Service, running  # noqa: E402

OUTPUT = Path(__file__).parent / "results" / "job_start.json"
JOB = {"model": {"id": "builtin:manuals-16l"}, "ratio": 0.25}
MEDIAN_BAR_SECONDS = 0.3
SELDOM_SECONDS = 600.0  # a worker that looks so rarely by itself was told of the job
DEFAULTS = Settings(data_dir=Path("unused"))
FIRST_STEP = "job.stage"


class Waits(BaseModel):
    """Seconds from commit to the first event of the job's process."""

    broker: str
    claim_seconds: float
    bar_seconds: float
    median_seconds: float
    longest_seconds: float
    seconds: list[float]
    met: bool


class Result(BaseModel):
    """The file."""

    command: str
    created_at: datetime
    seed: int
    environment: Environment
    waits: list[Waits]
    bars_met: bool


def main() -> int:
    options = _options()
    chance = random.Random(options.seed)
    told = _measured(chance, options.jobs, broker=True)
    alone = _measured(chance, options.jobs_without_broker, broker=False, start_seconds=told.longest_seconds)
    result = Result(
        command=shlex.join(["python", "benchmarks/job_start.py", *sys.argv[1:]]),
        created_at=datetime.now(UTC),
        seed=options.seed,
        environment=environment(devices.choose("cpu")),
        waits=[told, alone],
        bars_met=told.met and alone.met,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for found in result.waits:
        print(
            f"broker {found.broker}: median {found.median_seconds:.3f} s, longest {found.longest_seconds:.3f} s of "
            f"{len(found.seconds)} jobs; bar {found.bar_seconds:.3f} s, {'met' if found.met else 'MISSED'}"
        )
    return 0 if result.bars_met else 1


def _measured(chance: random.Random, jobs: int, *, broker: bool, start_seconds: float = 0.0) -> Waits:
    """With a broker the median has a bar; without one every single wait has."""
    claim_seconds = SELDOM_SECONDS if broker else DEFAULTS.claim_seconds
    with _service(claim_seconds, broker=broker) as service:
        seconds = [_wait(service, chance, claim_seconds) for _ in range(jobs)]
    bar = MEDIAN_BAR_SECONDS if broker else claim_seconds + start_seconds
    median, longest = statistics.median(seconds), max(seconds)
    return Waits(
        broker="up" if broker else "down",
        claim_seconds=claim_seconds,
        bar_seconds=bar,
        median_seconds=median,
        longest_seconds=longest,
        seconds=seconds,
        met=(median if broker else longest) <= bar,
    )


@contextmanager
def _service(claim_seconds: float, *, broker: bool) -> Iterator[Service]:
    """API and worker with the default settings, but for how often the worker looks by itself; warm."""
    with (
        tempfile.TemporaryDirectory() as folder,
        servers.postgres_server() as postgres,
        servers.redis_server() as redis,
    ):
        environment = {
            "ELDER_ENVIRONMENT": "production",
            "ELDER_DATA_DIR": f"{folder}/data",
            "ELDER_DATABASE_URL": postgres.url,
            "ELDER_BROKER_URL": redis.url,
            "ELDER_SECRET_KEY": "s" * 40,
            "ELDER_HEARTBEAT_SECONDS": str(DEFAULTS.heartbeat_seconds),
            "ELDER_LEASE_SECONDS": str(DEFAULTS.lease_seconds),
            "ELDER_CANCEL_POLL_SECONDS": "0.2",  # between the jobs only: each is cancelled once it has begun
            "ELDER_CLAIM_SECONDS": str(claim_seconds),
            "ELDER_MAINTENANCE_SECONDS": str(max(claim_seconds, DEFAULTS.maintenance_seconds)),
        }
        with running(Path(folder) / "logs", environment) as service:
            service.worker()
            service.wait_for(lambda: service.get("/v1/workers")["data"], bool)
            if not broker:
                redis.process.kill()
                redis.process.wait()
            yield service


def _wait(service: Service, chance: random.Random, claim_seconds: float) -> float:
    """Of one job, sent at a moment that has nothing to do with the worker's timers."""
    time.sleep(chance.uniform(0.2, min(claim_seconds, DEFAULTS.claim_seconds)))
    job_id: str = service.post("/v1/jobs", JOB)["id"]
    path = f"/v1/jobs/{job_id}/events"
    log = service.wait_for(lambda: service.get(path)["data"], lambda found: any(e["type"] == FIRST_STEP for e in found))
    at = {event["type"]: datetime.fromisoformat(event["at"]) for event in reversed(log)}
    service.post(f"/v1/jobs/{job_id}/cancel")
    service.wait(job_id, lambda job: job["status"] == "cancelled")
    return (at[FIRST_STEP] - at["job.created"]).total_seconds()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the pauses between jobs")
    parser.add_argument("--jobs", type=int, default=50, help="that a hint starts")
    parser.add_argument("--jobs-without-broker", type=int, default=10, help="that the worker finds by itself")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
