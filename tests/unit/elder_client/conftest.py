from __future__ import annotations

import pytest

from tests.unit.elder_client.scripted import Caller


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Caller:
    return Caller(request.param)
