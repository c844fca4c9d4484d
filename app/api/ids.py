"""Ids as every endpoint takes them: strings, never numbers, of 1–128 characters."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

Id = Annotated[
    str,
    # Control characters are Unicode's category Cc; the pattern means the same in Rust, Python and JavaScript.
    StringConstraints(strict=True, min_length=1, max_length=128, pattern=r"^[^/\x00-\x1f\x7f-\x9f]+$"),
]
UserId = Annotated[Id, Field(description="the caller's id of a user", examples=["ann"])]
ItemId = Annotated[Id, Field(description="the caller's id of an item", examples=["i42"])]
EventId = Annotated[Id, Field(description="the same id twice is stored once", examples=["e1"])]
SessionId = Annotated[Id, Field(description="a listening session; unique across users", examples=["s1"])]
RequestId = Annotated[Id, Field(description="`request_id` of the page that was shown", examples=["01JDSQ2Z"])]
