"""Requests made from the OpenAPI document, and answers held against it (Schemathesis)."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from llava.serve.api import ServerLimits
from llava.serve.pool import ModelPool
from tests.serve.conftest import new_server, serving

# Not among them: whether data that the document allows is accepted (it cannot say that a picture must be readable, or
# which names `tool_choice` may have) and data that it does not allow is refused (null means absent, as at OpenAI).
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def document(pool: ModelPool) -> Iterator[Any]:
    with serving(new_server(pool, limits=ServerLimits(answer_tokens=2))) as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{name}"),
        ("GET", "/health"),
        ("GET", "/ready"),
        ("GET", "/metrics"),
    ],
)
def test_answers_are_as_documented(document: Any, method: str, path: str) -> None:
    @settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(document[path][method].as_strategy())
    def holds(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):  # few tokens, or it takes long
            for name in ("max_tokens", "max_completion_tokens"):
                if isinstance(case.body.get(name), int | float) and case.body[name] > 2:
                    case.body[name] = 2
        case.call_and_validate(checks=CHECKS, timeout=120)

    holds()


def test_all_operations_are_tried(document: Any) -> None:
    assert sum(1 for _ in document.get_all_operations()) == 7
