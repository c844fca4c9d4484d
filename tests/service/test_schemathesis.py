"""Every operation of /openapi.json, fuzzed over HTTP: never a 500, and never an answer that is not documented.

The service has stores of its own, since what is generated deletes and overwrites whatever it finds.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import load_all_checks
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import positive_data_acceptance
from sqlalchemy import update

from app.importers.movietweetings import import_movietweetings
from app.main import create_app
from app.settings import Settings
from app.storage.database import database_id, open_engine
from app.storage.tables import database_identity
from tests.patience import until
from tests.service.conftest import KEYS, Service, Stores, running
from tests.service.sample import write_sample

EXAMPLES = 8
"""Generated requests per operation, beside those that the schema's limits give."""
HEADERS = {"X-API-Key": KEYS["admin"]}
# A schema can't say that an id is taken twice or a cursor made up: valid data may be refused, with a documented 422.
NOT_PROMISED = [positive_data_acceptance]
BOUNDED = settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))

load_all_checks()


@pytest.fixture(scope="module")
def guinea_pig(
    stores: Stores, new_database: Callable[[], str], redis_server_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service with the same data and release as the others, and nobody else's."""
    folder = tmp_path_factory.mktemp("guinea-pig")
    database_url = new_database()
    engine, original = open_engine(database_url), open_engine(stores.environment["DATABASE_URL"])
    import_movietweetings(engine, write_sample(folder / "sample"), shift_to_now=True)
    with engine.begin() as db, original.connect() as of:
        # The same files give the same rows, so the release fits; it only asks for its own database.
        db.execute(update(database_identity).values(database_id=database_id(of)))
    engine.dispose()
    original.dispose()
    shutil.copytree(stores.settings.data_dir, folder / "var")
    more = {"DATABASE_URL": database_url, "REDIS_URL": redis_server_url, "SEGUE_DATA_DIR": str(folder / "var")}
    with running({**stores.environment, **more}) as service:
        until(lambda: service.client.get("/readyz").json()["degraded"] == {})
        yield service


def schema_of(document: dict[str, Any], *, examples: int) -> BaseSchema:
    # Unknown query parameters are ignored, so a request with one is not to be refused for it.
    generation = {"max-examples": examples, "deterministic": True, "allow-extra-parameters": False}
    config = SchemathesisConfig.from_dict({"generation": generation})
    schema: BaseSchema = schemathesis.openapi.from_dict(_without_keys(document), config=config)
    return schema


def _without_keys(document: dict[str, Any]) -> dict[str, Any]:
    """Every request carries the key here, so one that was generated without is not to be refused for that."""
    paths = {
        path: {method: {**operation, "security": []} for method, operation in operations.items()}
        for path, operations in document["paths"].items()
    }
    return document | {"paths": paths}


# Known before the service runs, so that each operation is a test of its own.
DOCUMENT = create_app(Settings()).openapi()
# Few, for each accepted request queues a job.
TRAIN = "/admin/train"


def test_the_running_service_serves_this_document(guinea_pig: Service) -> None:
    assert guinea_pig.client.get("/openapi.json").json() == json.loads(json.dumps(DOCUMENT))


def fuzzed(path: str, method: str) -> Callable[[Case, Service], None]:
    """The test of one operation."""
    schema = schema_of(DOCUMENT, examples=2 if path == TRAIN else EXAMPLES).include(path=path, method=method)

    @schema.parametrize()
    @BOUNDED
    def test_every_answer_is_as_documented(case: Case, guinea_pig: Service) -> None:
        case.call_and_validate(base_url=guinea_pig.url, headers=HEADERS, excluded_checks=NOT_PROMISED)

    return test_every_answer_is_as_documented


# A name for each: those that schemathesis makes of one function share a node id, of which xdist runs the first only.
for _path, _methods in DOCUMENT["paths"].items():
    for _method in _methods:
        _words = "_".join(re.findall(r"\w+", _path))
        globals()[f"test_every_answer_of_{_method}_{_words}_is_as_documented"] = fuzzed(_path, _method.upper())


def test_an_answer_that_is_not_as_documented_is_noticed(guinea_pig: Service) -> None:
    of_health = {"type": "object", "properties": {"status": {"type": "integer"}}}
    wrong = DOCUMENT | {"components": {"schemas": DOCUMENT["components"]["schemas"] | {"Health": of_health}}}
    case = schema_of(wrong, examples=1)["/healthz"]["GET"].Case()
    with pytest.raises(FailureGroup, match="is not of type"):
        case.call_and_validate(base_url=guinea_pig.url)


def test_it_is_still_ready_afterwards(guinea_pig: Service) -> None:
    until(lambda: guinea_pig.client.get("/readyz").json()["degraded"] == {})
