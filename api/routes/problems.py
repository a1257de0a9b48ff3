"""The error answers of a route, for OpenAPI."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from api.errors import PROBLEM_JSON
from api.schemas import Problem

_EXAMPLES = {
    400: ("invalid_json", "JSON decode error"),
    403: ("link_expired", "This link has expired; take a new link from the job's artifacts."),
    404: ("job_not_found", "There is no job 'job_01jd9z5x1rq8v7k2m3n4p5q6r7'."),
    409: ("report_not_ready", "The job is running; its report is there once it has succeeded."),
    413: ("content_too_large", "The body is larger than 1000000 bytes."),
    416: ("range_not_satisfiable", "The range lies outside the file."),
    500: ("internal_error", "A fault in the service. Its log tells more under request req_01jd9z5x1rq8v7k2m3n4p5q6r7."),
    422: ("invalid_ratio", "ratio is 1.5; give a number above 0 and below 1, such as 0.25."),
    503: ("database_unavailable", "The database does not answer; try again in a few seconds."),
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _problem(status) for status in statuses}


def _problem(status: int) -> dict[str, Any]:
    code, detail = _EXAMPLES[status]
    example = Problem(
        type=f"urn:elder:error:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        request_id="req_01jd9z5x1rq8v7k2m3n4p5q6r7",
    )
    return {
        "description": HTTPStatus(status).phrase,
        "content": {
            PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example.model_dump()}
        },
    }
