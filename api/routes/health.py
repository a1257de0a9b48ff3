"""Is the process alive, and can it serve?"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError

from api import schemas
from api.dependencies import Services, ServicesDep
from api.errors import PROBLEM_JSON, not_ready
from elder_service import queue
from elder_service.db.schema import check_head
from elder_service.errors import SchemaMismatch

router = APIRouter(tags=["health"])


@router.get("/livez")
def livez() -> schemas.Live:
    """The process answers."""
    return schemas.Live()


@router.get(
    "/readyz",
    response_model=schemas.Ready,
    responses={
        503: {
            "description": "The database cannot serve.",
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/NotReady"}}},
        }
    },
)
def readyz(request: Request, services: ServicesDep) -> schemas.Ready | JSONResponse:
    """Whether jobs can be accepted. A missing broker only delays their start: degraded, not down."""
    database = _database(services)
    broker = "ok" if queue.broker_reachable(services.celery) else "unreachable"
    checks = {"database": database, "broker": broker}
    if database != "ok":
        return not_ready(request, f"The database cannot serve: {database}", checks)
    return schemas.Ready(status="ok" if broker == "ok" else "degraded", checks=checks)


def _database(services: Services) -> str:
    try:
        check_head(services.engine)
    except SchemaMismatch as error:
        return error.message
    except SQLAlchemyError:
        return "unreachable"
    return "ok"
