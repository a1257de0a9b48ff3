"""The OpenAPI document, with the problem schema that every error answer refers to."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.routes.problems import problems
from api.schemas import NotReady, Problem


def install(app: FastAPI) -> None:
    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            schemas = document["components"]["schemas"]
            for model in (Problem, NotReady):
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update({**schema.pop("$defs"), model.__name__: schema})
            for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which is never sent
                schemas.pop(name, None)
            for operations in document["paths"].values():
                for operation in operations.values():
                    answers = operation["responses"]
                    if "422" in answers:
                        answers["422"] = problems(422)[422]
                    answers["500"] = problems(500)[500]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
