"""The OpenAPI document, with the problem schema that every error answer refers to."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.schemas import Problem


def install(app: FastAPI) -> None:
    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            document["components"]["schemas"].update({**schema.pop("$defs"), "Problem": schema})
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
