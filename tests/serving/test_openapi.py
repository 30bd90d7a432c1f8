"""The API keeps what its OpenAPI document promises, for requests that nobody thought of."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from feature_store import EmbeddedServer, OnlineStore
from serving.app import create_app
from serving.guard.keys import KeyRing, create_key
from serving.guard.settings import GuardSettings
from serving.settings import ServingSettings


@pytest.fixture(scope="module")
def guarded_api(make_runtime) -> Iterator[tuple[BaseSchema, dict[str, str]]]:
    with tempfile.TemporaryDirectory() as directory:
        # Not the app's own server: each call starts and stops the app, and a server that was stopped stays so.
        server = EmbeddedServer(Path(directory))
        server.ensure_running()
        key = create_key(Path(directory) / "keys.json", "tests", "admin")
        app = create_app(
            make_runtime(),
            OnlineStore.connect(f"unix://{server.socket_path}"),
            ServingSettings(guard=GuardSettings(requests_per_second=None)),
            keys=KeyRing(Path(directory) / "keys.json"),
        )
        yield schemathesis.openapi.from_asgi("/openapi.json", app), {"Authorization": f"Bearer {key}"}
        server.stop()


@pytest.fixture
def api(guarded_api: tuple[BaseSchema, dict[str, str]]) -> BaseSchema:
    return guarded_api[0]


@schemathesis.serializer("application/x-ndjson")
def _lines(_: schemathesis.SerializationContext, value: object) -> bytes:
    return str(value).encode("utf-8", "surrogatepass")


CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)


@pytest.mark.parametrize(
    "generation", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE], ids=["valid", "invalid"]
)
def test_answers_match_the_openapi_document(
    guarded_api: tuple[BaseSchema, dict[str, str]], generation: schemathesis.GenerationMode
) -> None:
    api, administrator = guarded_api
    for result in api.get_all_operations():
        operation = result.ok()

        @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=generation))
        def check(case: schemathesis.Case) -> None:
            answered = case.call_and_validate(checks=CHECKS, headers=administrator)
            if generation is schemathesis.GenerationMode.POSITIVE:  # the other one spoils the key as well
                assert answered.status_code not in (401, 403)

        with suppress(Unsatisfiable):  # an operation without input has no invalid one
            check()


def test_every_operation_has_a_name_and_requests_have_examples(api: BaseSchema) -> None:
    document = api.raw_schema
    for path in document["paths"].values():
        for operation in path.values():
            assert operation["operationId"]
            assert operation["description"]
    for model in ("RecommendRequest", "EventIn"):
        assert document["components"]["schemas"][model]["examples"]
