"""What routes ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.links import LinkSigner
from elder_service.db.engine import SessionFactory
from elder_service.jobs.hub_look import HubLook
from elder_service.settings import Settings
from elder_service.storage.base import Storage


@dataclass(frozen=True)
class Services:
    """Everything the API stands on, made once in create_app."""

    settings: Settings
    engine: Engine
    sessions: SessionFactory
    storage: Storage
    celery: Celery
    links: LinkSigner
    hub: HubLook


def get_services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]


def get_session(services: ServicesDep) -> Iterator[Session]:
    """One transaction per request, committed when the route returns and rolled back when it raises."""
    with services.sessions.begin() as session:
        yield session


# "function": committed before the response is sent, and not held open while one is streamed.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]


def base_url(request: Request) -> str:
    """Address for links to this service, without a slash at the end."""
    return (get_services(request).settings.public_url or str(request.base_url)).rstrip("/")
