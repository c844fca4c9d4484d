"""What /openapi.json promises of itself: an example for every body, words for every field, one shape of error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jsonschema_rs
import pytest

from app.main import create_app
from app.settings import Settings

DOCUMENT = create_app(Settings()).openapi()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]


class Body(NamedTuple):
    """A body that is sent or answered, as the document has it."""

    where: str
    content: dict[str, Any]

    def examples(self) -> list[Any]:
        named = [example["value"] for example in self.content.get("examples", {}).values()]
        alone = [self.content["example"]] if "example" in self.content else []
        return named or alone or resolved(self.content["schema"]).get("examples", [])


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def bodies() -> Iterator[Body]:
    for name, operation in operations():
        for content in operation.get("requestBody", {}).get("content", {}).values():
            yield Body(f"{name} request", content)
        for status, answer in operation["responses"].items():
            for content in answer.get("content", {}).values():
                yield Body(f"{name} {status}", content)


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = SCHEMAS[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return found


@pytest.mark.parametrize("body", list(bodies()), ids=lambda body: body.where)
def test_every_body_has_an_example_that_fits_its_schema(body: Body) -> None:
    validator = jsonschema_rs.validator_for(body.content["schema"] | {"components": DOCUMENT["components"]})
    assert body.examples()
    for example in body.examples():
        validator.validate(example)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_field_is_described(name: str) -> None:
    for field, schema in SCHEMAS[name].get("properties", {}).items():
        assert schema.get("description"), field


def test_every_parameter_and_operation_is_described() -> None:
    for name, operation in operations():
        assert operation["summary"], name
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), f"{name}: {parameter['name']}"


def test_every_operation_has_the_one_shape_of_error() -> None:
    shape = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for name, operation in operations():
        errors = {status: answer["content"] for status, answer in operation["responses"].items() if status[0] in "45"}
        assert errors == {"4XX": shape, "5XX": shape}, name
