"""What /openapi.json says beyond what FastAPI writes into it by itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from app.api.problems import Problem

Schema = dict[str, Any]


def install(app: FastAPI) -> None:
    """Adds the shape of errors, and the nulls that FastAPI leaves out of examples."""
    # PROBLEM_RESPONSES refers to these; named as a model there, they would be offered as plain JSON too.
    _, problems = models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas: dict[str, Schema] = document["components"]["schemas"]
        schemas |= problems["$defs"]
        for schema in schemas.values():
            if "examples" in schema:
                schema["examples"] = [completed(example, schema, schemas) for example in schema["examples"]]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def completed(example: Any, schema: Schema, schemas: dict[str, Schema]) -> Any:
    """The example with null for each required field that it lacks, in what is nested in it too."""
    options = [schema, *schema.get("anyOf", ())]
    schema = next((schemas[each["$ref"].rpartition("/")[2]] for each in options if "$ref" in each), schema)
    if isinstance(example, list):
        return [completed(each, schema.get("items", {}), schemas) for each in example]
    if not isinstance(example, dict) or "properties" not in schema:
        return example
    known = {name: completed(example[name], schema["properties"].get(name, {}), schemas) for name in example}
    return dict.fromkeys(schema.get("required", ())) | known
