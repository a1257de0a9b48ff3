"""The methods there are."""

from __future__ import annotations

from fastapi import APIRouter

from api import schemas
from elder_core.registry import METHODS

router = APIRouter(prefix="/v1/methods", tags=["methods"])


@router.get("")
def list_methods() -> schemas.MethodList:
    """Every method with the JSON schema of its parameters."""
    return schemas.MethodList(
        data=[
            schemas.MethodInfo(
                name=entry.name,
                title=entry.title,
                summary=entry.summary,
                source=entry.source,
                parameters=entry.parameters.model_json_schema(),
            )
            for entry in METHODS.values()
        ]
    )
