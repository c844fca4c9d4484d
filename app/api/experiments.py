"""Which variants a user is in: computed from the definitions, not stored."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from app.api.bodies import example, json_answer
from app.api.dependencies import ResourcesDep, require
from app.api.ids import UserId
from app.experiments.assigning import membership

router = APIRouter(prefix="/experiments", tags=["experiments"], dependencies=[Depends(require("read"))])

ASSIGNMENT = {"key": "feed-ranker", "variant": "treatment", "in_experiment": True}


class Assignment(BaseModel):
    """A user's part in one running experiment."""

    model_config = example(**ASSIGNMENT)

    key: str = Field(description="of the experiment")
    variant: str | None = Field(description="its name; null for a user who is not in the experiment")
    in_experiment: bool = Field(description="whether the hash, or the definition by name, puts the user in")


class Assignments(BaseModel):
    """Every running experiment, holdouts first, then by key."""

    model_config = example(items=[ASSIGNMENT])

    items: list[Assignment] = Field(description="one for each")


@router.get("/assignment", response_model=Assignments, summary="Which variants a user is in")
async def assignment(resources: ResourcesDep, user_id: UserId) -> Response:
    """By the user's id alone: a request takes part where it is also on the experiment's surface and route. Exposes
    nobody: that happens with `GET /recommend`."""
    inventory = await resources.inventories.caught_up(await resources.contexts.versions())
    items = [
        {
            "key": experiment.key,
            "variant": None if variant is None else variant.name,
            "in_experiment": variant is not None,
        }
        for experiment, variant in membership(inventory.experiments, user_id)
    ]
    return json_answer({"items": items})
