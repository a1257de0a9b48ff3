"""The workers that are there."""

from __future__ import annotations

from fastapi import APIRouter

from api import schemas
from api.dependencies import SessionDep
from api.routes.problems import problems
from elder_service.jobs import workers

router = APIRouter(prefix="/v1/workers", tags=["workers"])


@router.get("", responses=problems(503))
def list_workers(session: SessionDep) -> schemas.WorkerList:
    """Every worker that is running, and what it has to run jobs on."""
    return schemas.WorkerList(data=[schemas.Worker.model_validate(row) for row in workers.present(session)])
