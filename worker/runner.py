"""Inside the job's process: from an assignment to files in storage. The only part of the worker with torch."""

from __future__ import annotations

import errno
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from elder_core import pipeline
from elder_core.errors import Cancelled, ElderError
from elder_core.journal import Journal
from elder_core.spec import Report
from elder_service.errors import DiskFull, InternalError
from elder_service.jobs.attempts import Outcome
from elder_service.storage.base import StoredFile, attempt_prefix, journal_prefix
from elder_service.storage.local import LocalStorage
from elder_service.storage.publish import publish
from worker.child import DISCARD, Assignment, Failure, Message, Stopped
from worker.pages import StoredPages


def run(assignment: Assignment, connection: Connection) -> None:
    """Run the job, sending each step through the pipe and the ending last."""
    stop, discard = threading.Event(), threading.Event()
    signal.signal(DISCARD, lambda *_: discard.set())
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    pages = StoredPages(
        LocalStorage(assignment.artifacts_dir), journal_prefix(assignment.job_id), assignment.scratch / "journal"
    )
    journal = Journal(
        pages, seconds=assignment.journal_seconds, stopping=lambda: stop.is_set() and not discard.is_set()
    )
    connection.send(_ending(assignment, connection, stop, journal))
    connection.close()


def _ending(assignment: Assignment, connection: Connection, stop: threading.Event, journal: Journal) -> Message:
    try:
        report = pipeline.run(
            assignment.spec,
            model_dir=assignment.scratch / "model",
            report_dir=assignment.scratch / "report",
            sources=assignment.sources,
            device=assignment.device,
            progress=connection.send,
            cancelled=stop.is_set,
            journal=journal,
        )
        return Outcome(result=summary(report), files=_publish(assignment, stop))
    except Cancelled:
        return Stopped()
    except ElderError as error:
        traceback.print_exc()
        return Failure(error)
    except Exception as error:  # the process ends here: whatever it was becomes the job's error
        traceback.print_exc()
        if _disk_full(error):
            return Failure(DiskFull(f"The disk of the worker's ELDER_DATA_DIR is full: {error}. Make room there."))
        return Failure(InternalError(f"{type(error).__name__}: {error}"))


def summary(report: Report) -> dict[str, object]:
    """The figures for the job's row."""
    before, after = report.evaluation.before, report.evaluation.after
    return {
        "removed_layers": list(report.removed_layers),
        "layers_before": before.layers,
        "layers_after": after.layers,
        "parameters_before": before.parameters,
        "parameters_after": after.parameters,
        "perplexity_before": before.perplexity,
        "perplexity_after": after.perplexity,
        "decode_speedup": report.evaluation.ratios.get("decode_tokens_per_second"),
    }


def _publish(assignment: Assignment, stop: threading.Event) -> tuple[StoredFile, ...]:
    """Move the files of this attempt into its own folder of the storage; they stay invisible until the last update."""
    storage = LocalStorage(assignment.artifacts_dir)
    prefix = attempt_prefix(assignment.job_id, assignment.attempt)
    model, report = assignment.scratch / "model", assignment.scratch / "report"

    def moved(folder: Path, path: Path, kind: Literal["model", "report"]) -> StoredFile:
        if stop.is_set():
            raise Cancelled
        name = path.relative_to(folder).as_posix()
        return publish(storage, f"{prefix}/{name}", name, kind, path, stop.wait)

    return (
        *(moved(assignment.scratch, path, "model") for path in _files(model)),
        *(moved(report, path, "report") for path in _files(report)),
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _disk_full(error: Exception) -> bool:
    """Also as safetensors says it, which has errors of its own."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return "No space left on device" in str(error)
