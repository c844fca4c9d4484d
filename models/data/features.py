"""Content vectors: what is known of items besides interactions, as numbers, by one encoder for fitting and serving.

Each source of knowledge (categories, tags, text, …) becomes a block of columns. An item's row in a block has
the block's weight as its length, or is zero where the item has nothing to say, so that no source drowns the
others by being wider and an item without metadata is the zero vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from models.contracts import Arrays, Parameters, Parts, Scores
from models.data.dataset import ItemTable
from models.data.terms import TermVectors, fit_term_vectors, label, unit_rows, words

WEIGHTS = {
    "categories": 1.0,
    "tags": 0.7,
    "text": 0.5,
    "kinds": 0.3,
    "creators": 0.5,
    "published": 0.5,
    "features": 1.0,
}
"""Length of an item's row in each block: what people choose by first, what merely tells items apart last."""

# widest, rarest, most_terms of `fit_term_vectors`. A tag or word seen once links no two items.
_TERM_BLOCKS = {"categories": (64, 1, 2_000), "tags": (32, 2, 5_000), "text": (64, 2, 20_000), "kinds": (16, 1, 200)}
_CREATOR_BITS = 32
_PUBLISHED_KNOTS = 8
_WIDEST_FEATURES = 64


@dataclass(frozen=True, slots=True)
class Timeline:
    """Publication times as overlapping triangles between quantiles, so that neighbours in time are alike.

    knots: float64[k], ascending; an item older or newer than all of them belongs to the outermost one
    """

    knots: NDArray[np.float64]

    def encode(self, published: NDArray[np.float64]) -> Scores:
        """float32[n, k], rows of unit length, zeros where the time is unknown."""
        rows = np.zeros((len(published), len(self.knots)), np.float32)
        known = np.flatnonzero(np.isfinite(published))
        if len(known) and len(self.knots):
            place = np.interp(published[known], self.knots, np.arange(len(self.knots)))
            distance = np.abs(place[:, None] - np.arange(len(self.knots))[None, :])
            rows[known] = np.maximum(0, 1 - distance)
        return unit_rows(rows)


@dataclass(frozen=True, slots=True)
class GivenFeatures:
    """The owner's own vectors, centred and, where wide, reduced to their principal components.

    centre:     float32[given]
    projection: float32[given, d]
    """

    centre: NDArray[np.float32]
    projection: NDArray[np.float32]

    def encode(self, features: NDArray[np.float32]) -> Scores:
        """float32[n, d], rows of unit length, zeros where a value is missing or the width is another."""
        rows = np.zeros((len(features), self.projection.shape[1]), np.float32)
        if features.shape[1] == len(self.centre) > 0:
            present = np.isfinite(features).all(axis=1)
            rows[present] = (features[present] - self.centre) @ self.projection
        return unit_rows(rows)


@dataclass(frozen=True, slots=True)
class ContentEncoder:
    """Turns an ItemTable into content vectors. Built by `fit_content_encoder` or `from_parts`.

    terms:     one TermVectors per block of words or labels
    creators:  whether the catalogue it was fitted on names creators
    """

    terms: Mapping[str, TermVectors]
    creators: bool
    timeline: Timeline
    given: GivenFeatures

    @property
    def dimensions(self) -> int:
        """Columns of `transform`, the same for every table."""
        terms = sum(vectors.dimensions for vectors in self.terms.values())
        creators = _CREATOR_BITS if self.creators else 0
        return terms + creators + len(self.timeline.knots) + int(self.given.projection.shape[1])

    def transform(self, items: ItemTable) -> Scores:
        """float32[n, dimensions]; an item of which nothing is known becomes zeros. 1 item takes < 1 ms."""
        blocks = {name: vectors.encode(_bags(items, name)) for name, vectors in self.terms.items()}
        if self.creators:
            blocks["creators"] = _signatures(items.creators)
        blocks["published"] = self.timeline.encode(items.published)
        blocks["features"] = self.given.encode(items.features)
        return np.hstack([WEIGHTS[name] * block for name, block in blocks.items()]).astype(np.float32)

    def parts(self) -> Parts:
        parameters = {"creators": self.creators, "vocabularies": {n: list(t.vocabulary) for n, t in self.terms.items()}}
        arrays: dict[str, NDArray[Any]] = {
            "published.knots": self.timeline.knots,
            "features.centre": self.given.centre,
            "features.projection": self.given.projection,
        }
        for name, vectors in self.terms.items():
            arrays[f"{name}.idf"] = vectors.idf
            if vectors.projection is not None:
                arrays[f"{name}.projection"] = vectors.projection
        return Parts(parameters, arrays)

    @classmethod
    def from_parts(cls, parameters: Parameters, arrays: Arrays) -> Self:
        terms = {
            name: TermVectors(
                {term: column for column, term in enumerate(vocabulary)},
                arrays[f"{name}.idf"],
                arrays.get(f"{name}.projection"),
            )
            for name, vocabulary in parameters["vocabularies"].items()
        }
        given = GivenFeatures(arrays["features.centre"], arrays["features.projection"])
        return cls(terms, bool(parameters["creators"]), Timeline(arrays["published.knots"]), given)


def fit_content_encoder(items: ItemTable, *, seed: int) -> ContentEncoder:
    """Learn vocabularies, projections and scales from a catalogue, which may lack any source or be empty."""
    # Many threads gain nothing on matrices this small, and lose much where cores are busy.
    with threadpool_limits(1, "blas"):
        terms = {
            name: fit_term_vectors(_bags(items, name), widest=widest, rarest=rarest, most_terms=most_terms, seed=seed)
            for name, (widest, rarest, most_terms) in _TERM_BLOCKS.items()
        }
        given = _fit_given_features(items.features)
    return ContentEncoder(
        terms=terms,
        creators=any(items.creators),
        timeline=_fit_timeline(items.published),
        given=given,
    )


def _bags(items: ItemTable, block: str) -> list[list[str]]:
    if block == "text":
        return [words(text) for text in items.texts]
    if block == "kinds":
        return [[label(kind)] if kind else [] for kind in items.kinds]
    labels = items.categories if block == "categories" else items.tags
    return [[name for raw in item if (name := label(raw))] for item in labels]


def _signatures(creators: list[str | None]) -> Scores:
    """float32[n, bits]: a creator's name hashed to signs. Needs no vocabulary, so it knows creators to come;
    two names are nearly orthogonal (cosine 0 ± 0.18)."""
    rows = np.zeros((len(creators), _CREATOR_BITS), np.float32)
    for row, creator in enumerate(creators):
        if creator and (name := label(creator)):
            digest = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=_CREATOR_BITS // 8).digest()
            rows[row] = np.unpackbits(np.frombuffer(digest, np.uint8)) * 2.0 - 1.0
    return unit_rows(rows)


def _fit_timeline(published: NDArray[np.float64]) -> Timeline:
    known = published[np.isfinite(published)]
    if len(known) == 0:
        return Timeline(np.empty(0, np.float64))
    return Timeline(np.unique(np.quantile(known, np.linspace(0, 1, _PUBLISHED_KNOTS))))


def _fit_given_features(features: NDArray[np.float32]) -> GivenFeatures:
    width = features.shape[1]
    present = features[np.isfinite(features).all(axis=1)].astype(np.float64)
    if width == 0 or len(present) == 0:
        return GivenFeatures(np.zeros(width, np.float32), np.zeros((width, 0), np.float32))
    centre = present.mean(axis=0)
    if width <= _WIDEST_FEATURES:
        projection = np.diag(1 / np.maximum(present.std(axis=0), 1e-6))
    else:
        _, directions = np.linalg.eigh((present - centre).T @ (present - centre))
        projection = directions[:, ::-1][:, :_WIDEST_FEATURES]
    return GivenFeatures(centre.astype(np.float32), np.ascontiguousarray(projection, np.float32))
