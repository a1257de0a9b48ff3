"""What it costs a run to keep a journal, so that it can go on after a crash. Bar: 3 % of its time, as settings come.

Runs the default job on the bundled model, at half of its layers, with a journal in a worker's storage; the time that
writing pages takes is counted within the run, so that no two runs have to be compared. Writes
`benchmarks/results/journal.json`; exits with 1 if the bar is missed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from elder_core import pipeline
from elder_core.inspection import Sources
from elder_core.journal import SECONDS, Journal
from elder_core.spec import Environment, JobSpec, ModelRef
from elder_service.storage.local import LocalStorage
from worker.pages import StoredPages

BAR = 0.03
OUTPUT = Path(__file__).parent / "results" / "journal.json"


class Result(BaseModel):
    """The file. `share` is of `run_seconds`; `page_bytes` by name are what is on disk at the end."""

    command: str
    created_at: datetime
    environment: Environment
    spec: JobSpec
    interval_seconds: float
    run_seconds: float
    journal_seconds: float
    share: float
    page_bytes: dict[str, int]
    bar_met: bool


def main() -> int:
    options = _options()
    spec = JobSpec(model=ModelRef(id="builtin:manuals-16l"), ratio=0.5, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pages = StoredPages(LocalStorage(place / "storage"), "journal", place / "scratch")
        journal = Journal(pages, seconds=options.interval)
        started = time.monotonic()
        report = pipeline.run(
            spec,
            model_dir=place / "model",
            report_dir=place / "report",
            sources=Sources(),
            device=options.device,
            journal=journal,
        )
        seconds = time.monotonic() - started
        sizes = {page.name: page.stat().st_size for page in sorted((place / "storage" / "journal").iterdir())}
    share = journal.spent_seconds / seconds
    result = Result(
        command=shlex.join(["python", "benchmarks/journal.py", *sys.argv[1:]]),
        created_at=datetime.now(UTC),
        environment=report.environment,
        spec=spec,
        interval_seconds=options.interval,
        run_seconds=seconds,
        journal_seconds=journal.spent_seconds,
        share=share,
        page_bytes=sizes,
        bar_met=share <= BAR,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    print(f"{journal.spent_seconds:.2f} s of {seconds:.0f} s: {share:.2%}; {len(sizes)} pages")
    return 0 if result.bar_met else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--interval", type=float, default=SECONDS, help="seconds between pages")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
