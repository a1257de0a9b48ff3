"""Is the process alive, and can it serve?"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response, status
from sqlalchemy.exc import SQLAlchemyError

from api import schemas
from api.dependencies import Services, ServicesDep
from elder_service import queue
from elder_service.db.schema import check_head
from elder_service.errors import SchemaMismatch

router = APIRouter(tags=["health"])


@router.get("/livez")
def livez() -> schemas.Live:
    """The process answers."""
    return schemas.Live()


@router.get("/readyz", responses={503: {"model": schemas.Ready, "description": "Not ready."}})
def readyz(response: Response, services: ServicesDep) -> schemas.Ready:
    """Whether jobs can be accepted. A missing broker only delays their start: degraded, not down."""
    database = _database(services)
    broker = "ok" if queue.broker_reachable(services.celery) else "unreachable"
    state: Literal["ok", "degraded", "down"] = "ok" if broker == "ok" else "degraded"
    if database != "ok":
        state = "down"
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return schemas.Ready(status=state, checks={"database": database, "broker": broker})


def _database(services: Services) -> str:
    try:
        check_head(services.engine)
    except SchemaMismatch as error:
        return error.message
    except SQLAlchemyError:
        return "unreachable"
    return "ok"
