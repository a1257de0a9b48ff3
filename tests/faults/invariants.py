"""What must hold after every fault: each accepted job ended, nothing was done twice, nothing is left over."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from elder_service.db.models import ArtifactRow, JobEventRow, JobRow
from elder_service.jobs import events
from elder_service.jobs.states import Status
from tests.faults import records
from tests.faults.cluster import Cluster
from tests.faults.script import FILES, content

ENDING_OF = {
    Status.SUCCEEDED: events.SUCCEEDED,
    Status.FAILED: events.FAILED,
    Status.CANCELLED: events.CANCELLED,
    Status.EXPIRED: events.EXPIRED,
}


def check(cluster: Cluster) -> Counter[str]:
    """Wait until every job has ended and what was left is swept, then look at all there is; jobs by state."""
    for job_id in _ids(cluster):
        cluster.ended(job_id)
    assert_nothing_done_twice(cluster)
    assert_nothing_left(cluster)
    with cluster.sessions.begin() as session:
        return Counter(note(session, cluster.accepted).values())


def note(session: Session, accepted: set[str]) -> dict[str, str]:
    """For the table of the test that runs, what became of the jobs; their states by id."""
    states = {row.id: row.status for row in session.scalars(select(JobRow))}
    lost = [job_id for job_id in accepted if not Status(states.get(job_id, Status.QUEUED)).ended]
    everything = len(states.keys() | accepted)
    records.note(accepted=everything, lost=len(lost), recovery_seconds=longest_recovery(session))
    assert not lost, "accepted, and not ended"
    return states


def longest_recovery(session: Session) -> float:
    """Seconds from the last sign of an attempt that was given up to the start of the next; 0 if none was."""
    longest, last, given_up = 0.0, None, None
    for event in session.scalars(select(JobEventRow).order_by(JobEventRow.job_id, JobEventRow.seq)):
        if event.type == events.REQUEUED:
            given_up = last
        elif event.type == events.STARTED and given_up is not None and given_up.job_id == event.job_id:
            longest, given_up = max(longest, (event.at - given_up.at).total_seconds()), None
        last = event
    return longest


def assert_nothing_done_twice(cluster: Cluster) -> None:
    """By the log of each job, and by what the jobs' processes noted themselves."""
    twice = {run: times for run, times in Counter(cluster.gates.executions()).items() if times > 1}
    assert not twice, "an attempt was run more than once"
    with cluster.sessions.begin() as session:
        for row in session.scalars(select(JobRow)):
            assert_well_ended(session, row, cluster.settings.artifacts_dir)
    orphans = {job_id for job_id, _ in cluster.gates.executions()} - _ids(cluster)
    assert not orphans, "ran without a row"


def _ids(cluster: Cluster) -> set[str]:
    with cluster.sessions.begin() as session:
        return set(session.scalars(select(JobRow.id)))


def assert_well_ended(session: Session, row: JobRow, artifacts: Path) -> None:
    """One job: its log is whole and ends as the row says, and its files are those that one attempt wrote."""
    _check_log(session, row)
    _check_files(session, row, artifacts)


def _check_log(session: Session, row: JobRow) -> None:
    log = list(session.scalars(select(JobEventRow).where(JobEventRow.job_id == row.id).order_by(JobEventRow.seq)))
    kinds = [event.type for event in log]
    assert [event.seq for event in log] == list(range(1, row.last_event_seq + 1)), f"{row.id}: gaps in {kinds}"
    assert [event.at for event in log] == sorted(event.at for event in log), f"{row.id}: times go back"
    assert kinds[0] == events.CREATED
    assert kinds[-1] == ENDING_OF[Status(row.status)], (row.id, row.status, kinds)
    assert sum(kind in events.ENDING for kind in kinds) == 1, f"{row.id} ended more than once: {kinds}"
    started = [event.data["attempt"] for event in log if event.type == events.STARTED]
    assert started == list(range(1, row.attempt + 1)), f"{row.id}: attempts {started}"
    _check_turns(row.id, kinds)


def _check_turns(job_id: str, kinds: list[str]) -> None:
    """An attempt begins only where the one before it was given up, and only an attempt makes steps."""
    running = False
    for kind in kinds:
        if kind == events.STARTED:
            assert not running, f"{job_id}: two attempts at once: {kinds}"
            running = True
        elif kind == events.REQUEUED:
            assert running, f"{job_id}: given up twice: {kinds}"
            running = False
        elif kind in {events.STAGE, events.PROGRESS}:
            assert running, f"{job_id}: a step of no attempt: {kinds}"


def _check_files(session: Session, row: JobRow, artifacts: Path) -> None:
    files = list(session.scalars(select(ArtifactRow).where(ArtifactRow.job_id == row.id)))
    if row.status != Status.SUCCEEDED:
        assert not files, f"{row.id} is {row.status} and shows files"
        return
    assert sorted(file.name for file in files) == sorted(FILES)
    for file in files:
        assert file.storage_key.startswith(f"jobs/{row.id}/attempt-{row.attempt}/")
        stored = (artifacts / file.storage_key).read_bytes()
        assert stored == content(row.id, file.name), f"{file.storage_key} is not what the job wrote"
        assert (len(stored), hashlib.sha256(stored).hexdigest()) == (file.size_bytes, file.sha256)


def assert_nothing_left(cluster: Cluster) -> None:
    """No lease, no process of a job, no scratch space, no file in storage but those that callers see."""
    with cluster.sessions.begin() as session:
        leases = list(session.scalars(select(JobRow.id).where(JobRow.lease_owner.is_not(None))))
        visible = set(session.scalars(select(ArtifactRow.storage_key)))
    assert not leases
    cluster.until(cluster.runners, lambda left: not left)
    cluster.until(lambda: _files(cluster.settings.scratch_dir), lambda left: not left)
    cluster.until(lambda: _files(cluster.settings.artifacts_dir) ^ visible, lambda wrong: not wrong)


def _files(root: Path) -> set[str]:
    """Names below `root`, of which some may vanish while they are listed."""
    return {str(Path(folder, name).relative_to(root)) for folder, _, names in os.walk(root) for name in names}
