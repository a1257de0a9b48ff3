"""The HTTP process. Start reading here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from fastapi import Depends, FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from api import errors, openapi
from api.dashboard import routes as dashboard
from api.dependencies import Services
from api.embedded import EmbeddedWorker
from api.links import LinkSigner
from api.middleware import RequestContext
from api.reconciling import reconciling
from api.routes import artifacts, events, health, jobs, methods, workers
from api.storable import refuse_nul
from elder_service.db.engine import make_engine, make_sessions
from elder_service.db.schema import check_head
from elder_service.jobs.hub_look import HubLook
from elder_service.queue import make_celery
from elder_service.settings import Settings
from elder_service.storage.local import LocalStorage
from elder_service.version import VERSION


def create_app(settings: Settings | None = None, worker: EmbeddedWorker | None = None) -> FastAPI:
    """The application, with a worker of its own if one is given.

    Its start-up raises SchemaMismatch on a database at another migration.
    """
    services = make_services(settings or Settings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        check_head(services.engine)
        async with reconciling(services), worker.running() if worker else nullcontext():
            yield
        services.celery.close()
        services.engine.dispose()

    app = FastAPI(
        title="ELDeR",
        summary="Makes language models shorter: depth pruning, regularize first, prune after.",
        version=VERSION,
        lifespan=lifespan,
        dependencies=[Depends(refuse_nul)],
    )
    app.state.services = services
    # Not FastAPI(max_body_size=…): that one stands outside of RequestContext, which makes its answer a problem.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=services.settings.max_body_bytes)
    app.add_middleware(RequestContext)
    errors.install(app)
    openapi.install(app)
    for module in (jobs, events, artifacts, methods, workers, health, dashboard):
        app.include_router(module.router)
    return app


def make_services(settings: Settings) -> Services:
    engine = make_engine(settings.effective_database_url)
    return Services(
        settings=settings,
        engine=engine,
        sessions=make_sessions(engine),
        storage=LocalStorage(settings.artifacts_dir),
        celery=make_celery(settings, only_sends=True),
        links=LinkSigner(settings.signing_key, settings.download_link_seconds),
        hub=HubLook(settings.hub_look_seconds),
    )
