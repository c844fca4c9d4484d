"""Recommends from the clusters of items nearest to what the user liked.

An item's content, mean rating and popularity go through the encoder half of an autoencoder (Hinton and
Salakhutdinov, "Reducing the dimensionality of data with neural networks", 2006); the embeddings, scaled to
length 1, are clustered by k-means. A user is a bag of liked embeddings: how much of it lies near a cluster says
which clusters to take from, closeness and trend order the items inside. Without interactions an item still has
its place, so new items are known at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from models.contracts import Arrays, History, Parameters, Parts, Positions, Progress, Query, Reason, Scores
from models.data.dataset import Dataset
from models.data.terms import label, unit_rows
from models.retrieval.dense import DenseRecommender
from models.retrieval.item_rows import ItemRows, cosines
from models.retrieval.popularity_kinds import choose_kind
from models.retrieval.tuning import DEFAULT_TREND_WEIGHT, Mix, Trial, choose_mix, hold_out_in_turn

SHARPNESS = 8.0
"""How strongly the nearest cluster outweighs the next: memberships are softmax(SHARPNESS · cosine)."""
RECENCY = 10.0
"""Entries after which a liked item counts half."""
LONGEST_HISTORY = 200
CONCESSION = 0.05
"""What the choice of weights may give up for less trend. On MovieTweetings 3 % buy lists from five times as
many items; with none given up the trend would drown the clusters."""
DISLIKE = 0.5
"""What a disliked item takes away, against 1 for a liked one."""
STATISTICS_SHARE = 0.25
"""Share of the features' variance that mean rating and popularity get together; content has the rest."""


@dataclass(frozen=True, slots=True)
class ItemEncoder:
    """Content and statistics → embedding, in plain numpy.

    centre, scale: float32[d + 2] of the features, the statistics last
    layers:        (float32[in, out], float32[out]) each, followed by tanh
    """

    centre: Scores
    scale: Scores
    layers: tuple[tuple[Scores, Scores], ...]

    def features(self, content: Scores, statistics: Scores | None = None) -> Scores:
        """float32[n, d + 2]; without statistics they are neutral, at their mean."""
        if statistics is None:
            statistics = np.broadcast_to(self.centre[-2:], (len(content), 2))
        return np.asarray((np.hstack([content, statistics]) - self.centre) * self.scale, np.float32)

    def embed(self, features: Scores) -> Scores:
        """float32[n, e], rows of length 1."""
        for weights, bias in self.layers:
            features = np.tanh(features @ weights + bias)
        return unit_rows(features)


class Taste(NamedTuple):
    """affinity: float32[k], -1–1, how much of what the user liked lies near each cluster, less what they disliked
    profile:  float32[e] of length 1, the direction of what they liked
    """

    affinity: Scores
    profile: Scores


@dataclass(frozen=True)
class ContentClusters(DenseRecommender):
    """Built by `fit_content_clusters` or `from_parts`.

    embeddings: rows of float32[e] of length 1, zeros for items of which nothing is known
    clusters:   int32[n + m], each item's cluster
    centroids:  float32[k, e] of length 1
    prior:      float32[n + m] added to every score: the weighted trend, -inf where nothing is known of the item
    categories: label → row of `prototypes`
    prototypes: float32[c, e], the middle of each category's items
    weights:    what the nearest cluster and the closest item add to a score
    chosen:     the choices of the fit, with the figures that they rest on
    """

    name: ClassVar[str] = "content_clusters"
    encoder: ItemEncoder
    embeddings: ItemRows
    clusters: NDArray[np.int32]
    centroids: Scores
    prior: Scores
    categories: dict[str, int]
    prototypes: Scores
    weights: tuple[float, float]
    chosen: Parameters

    @property
    def n_items(self) -> int:
        return len(self.embeddings)

    def scores(self, query: Query) -> Scores:
        taste = self.taste(query.history, query.preferred_categories)
        if taste is None:
            return np.full(self.n_items, -np.inf, np.float32)
        by_cluster, by_item = (np.float32(weight) for weight in self.weights)
        by_place = (by_cluster * taste.affinity)[self.clusters] + self.prior
        return np.asarray(by_place + self.embeddings.dot(by_item * taste.profile))

    def reasons(self, query: Query, positions: Positions) -> list[Reason]:
        """`cluster`, with the liked item that is closest."""
        liked = query.history.liked[query.history.liked < self.n_items]
        if len(liked) == 0:
            return [Reason("cluster")] * len(positions)
        closeness = self.embeddings.take(positions) @ self.embeddings.take(liked).T
        return [Reason("cluster", int(seed)) for seed in liked[closeness.argmax(axis=1)]]

    def similar(self, position: int) -> Scores:
        """float32[n_items]: cosine of the embeddings."""
        return cosines(self.embeddings, position)

    def with_new_items(self, content: Scores) -> Self:
        added = _embedded(self.encoder, content)
        n = len(self.embeddings.fitted)
        unknown = np.where(added.any(axis=1), 0, -np.inf).astype(np.float32)
        return replace(
            self,
            embeddings=self.embeddings.with_added(added),
            clusters=np.concatenate([self.clusters[:n], _nearest(added, self.centroids)]),
            prior=np.concatenate([self.prior[:n], unknown]),
        )

    def parts(self) -> Parts:
        n = len(self.embeddings.fitted)
        arrays: dict[str, NDArray[Any]] = {
            "centre": self.encoder.centre,
            "scale": self.encoder.scale,
            "embeddings": self.embeddings.fitted,
            "clusters": self.clusters[:n],
            "centroids": self.centroids,
            "prior": self.prior[:n],
            "prototypes": self.prototypes,
        }
        for depth, (weights, bias) in enumerate(self.encoder.layers):
            arrays |= {f"layer{depth}.weights": weights, f"layer{depth}.bias": bias}
        parameters = {
            "layers": len(self.encoder.layers),
            "categories": list(self.categories),
            "weights": list(self.weights),
            "chosen": dict(self.chosen),
        }
        return Parts(parameters, arrays)

    @classmethod
    def from_parts(cls, parameters: Parameters, arrays: Arrays) -> Self:
        layers = tuple(
            (arrays[f"layer{depth}.weights"], arrays[f"layer{depth}.bias"]) for depth in range(parameters["layers"])
        )
        by_cluster, by_item = parameters["weights"]
        return cls(
            encoder=ItemEncoder(arrays["centre"], arrays["scale"], layers),
            embeddings=ItemRows.of(arrays["embeddings"]),
            clusters=arrays["clusters"],
            centroids=arrays["centroids"],
            prior=arrays["prior"],
            categories={name: row for row, name in enumerate(parameters["categories"])},
            prototypes=arrays["prototypes"],
            weights=(by_cluster, by_item),
            chosen=parameters["chosen"],
        )

    def taste(self, history: History, preferred_categories: tuple[str, ...]) -> Taste | None:
        """What the user leans to, None where there is nothing to tell it by.

        Preferred categories speak only for a user who liked nothing yet.
        """
        known = np.flatnonzero((history.positions < self.n_items) & (history.signs != 0))[-LONGEST_HISTORY:]
        signs = history.signs[known]
        seeds = self.embeddings.take(history.positions[known])
        pulls = np.where(signs > 0, 1.0, -DISLIKE) * 0.5 ** (np.arange(len(known) - 1, -1, -1) / RECENCY)
        if not (signs > 0).any():
            labels = dict.fromkeys(map(label, preferred_categories))
            preferred = self.prototypes[[self.categories[name] for name in labels if name in self.categories]]
            if len(preferred) == 0:
                return None
            seeds, pulls = np.vstack([seeds, preferred]), np.concatenate([pulls, np.ones(len(preferred))])
        return self._lean(seeds, pulls)

    def _lean(self, seeds: Scores, pulls: NDArray[np.float64]) -> Taste:
        nearness = np.exp(SHARPNESS * (seeds @ self.centroids.T))
        memberships = nearness / nearness.sum(axis=1, keepdims=True)
        profile = pulls @ seeds
        return Taste(
            (pulls @ memberships / np.abs(pulls).sum()).astype(np.float32),
            (profile / max(float(np.linalg.norm(profile)), 1e-12)).astype(np.float32),
        )


def fit_content_clusters(dataset: Dataset, content: Scores, *, seed: int, progress: Progress) -> ContentClusters:
    """Learn embeddings and clusters, and weigh cluster, closeness and trend at moments inside the dataset.

    content: float32[n_items, d], rows of `ContentEncoder.transform`
    """
    # One thread: sums in the order of the moment would make two fits differ.
    with threadpool_limits(1):
        progress("content_clusters: weighing its signals", 0.0)
        mix = _choose_mix(dataset, content, seed)
        progress("content_clusters: embedding and clustering everything", 0.6)
        places = _fit_places(dataset, content, seed)
    progress("content_clusters: done", 1.0)
    by_cluster, by_item = mix.weights
    return replace(
        places,
        prior=places.prior + mix.prior(dataset),
        weights=(by_cluster, by_item),
        chosen={**places.chosen, **mix.figures()},
    )


# Weights of the nearest cluster and of the closest item.
_DEFAULT_WEIGHTS = (1.0, 1.0)
_CHOICES = ((1.0, 0.25), (1.0, 1.0), (0.5, 0.5), (0.25, 1.0), (0.25, 0.25))


def _choose_mix(dataset: Dataset, content: Scores, seed: int) -> Mix:
    held_out, kind = hold_out_in_turn(dataset, seed=seed), choose_kind(dataset)
    if not held_out:
        return Mix(_DEFAULT_WEIGHTS, DEFAULT_TREND_WEIGHT, kind)
    # Places move little with time: those of the first moment serve all, and look ahead of none.
    places = _fit_places(held_out[0].earlier, content, seed)
    trials = [Trial(part, partial(_nearness, places)) for part in held_out]
    return choose_mix(trials, kind, _CHOICES, concession=CONCESSION)


def _nearness(places: ContentClusters, history: History) -> NDArray[np.float32]:
    """float32[2, n_items]: how near each item's cluster, and the item itself, are to what the user liked."""
    taste = places.taste(history, ())
    if taste is None:
        return np.zeros((2, places.n_items), np.float32)
    return np.vstack([taste.affinity[places.clusters], places.embeddings.dot(taste.profile)])


def _fit_places(dataset: Dataset, content: Scores, seed: int) -> ContentClusters:
    """Embeddings, clusters and category prototypes, with nothing weighed yet."""
    # Imported here because serving never fits, and every worker would carry scikit-learn.
    from models.retrieval.cluster_fit import choose_clusters, fit_autoencoder  # noqa: PLC0415

    statistics = _statistics(dataset)
    encoder = _scaled(content, statistics)
    features = encoder.features(content, statistics)
    if len(features) > 1:
        encoder = replace(encoder, layers=tuple(fit_autoencoder(features, seed=seed)))
    embeddings = _embedded(encoder, content, statistics)
    known = embeddings.any(axis=1)
    centroids, figures = choose_clusters(embeddings[known], seed=seed) if known.any() else (embeddings[:0], [])
    centroids = unit_rows(centroids) if len(centroids) else np.zeros((1, embeddings.shape[1]), np.float32)
    categories, prototypes = _prototypes(dataset.items.categories, embeddings)
    return ContentClusters(
        encoder=encoder,
        embeddings=ItemRows.of(embeddings),
        clusters=_nearest(embeddings, centroids),
        centroids=centroids,
        prior=np.where(known, 0, -np.inf).astype(np.float32),
        categories=categories,
        prototypes=prototypes,
        weights=(1.0, 1.0),
        chosen={"clusters": len(centroids), "cluster_counts": [figure._asdict() for figure in figures]},
    )


def _statistics(dataset: Dataset) -> Scores:
    """float32[n, 2]: mean rating, drawn to the overall mean by five imagined ratings, and log popularity.

    An item that nobody met has the mean of the others, as an item that arrives later has: nobody judged it.
    """
    interactions, n = dataset.interactions, dataset.n_items
    rated = np.isfinite(interactions.values)
    items, values = interactions.items[rated], interactions.values[rated].astype(np.float64)
    overall = values.mean() if len(values) else 0.0
    ratings = (np.bincount(items, values, minlength=n) + 5 * overall) / (np.bincount(items, minlength=n) + 5)
    counts = np.bincount(interactions.items, minlength=n)
    statistics = np.stack([ratings, np.log1p(counts)], axis=1)
    if counts.any():
        statistics[counts == 0] = statistics[counts > 0].mean(axis=0)
    return statistics.astype(np.float32)


def _scaled(content: Scores, statistics: Scores) -> ItemEncoder:
    """An encoder without layers: content keeps the proportions of its blocks, the statistics get their share."""
    features = np.hstack([content, statistics]).astype(np.float64)
    columns = features.shape[1]
    if len(features) < 2:
        return ItemEncoder(np.zeros(columns, np.float32), np.ones(columns, np.float32), ())
    variances = features.var(axis=0)
    width, total = columns - 2, variances[:-2].sum()
    # Columns have variance 1 on average, which is what the network's initial weights are made for.
    scale = np.full(columns, np.sqrt(width / total) if total > 0 else 1.0)
    share = STATISTICS_SHARE / (1 - STATISTICS_SHARE) * max(1, width) / 2
    scale[-2:] = np.where(variances[-2:] > 1e-9, np.sqrt(share / np.maximum(variances[-2:], 1e-9)), 0.0)
    return ItemEncoder(features.mean(axis=0).astype(np.float32), scale.astype(np.float32), ())


def _embedded(encoder: ItemEncoder, content: Scores, statistics: Scores | None = None) -> Scores:
    """float32[n, e], zeros for items without content: their place would only say that they have none."""
    embeddings = encoder.embed(encoder.features(content, statistics))
    return np.where(content.any(axis=1, keepdims=True), embeddings, 0).astype(np.float32)


def _nearest(embeddings: Scores, centroids: Scores) -> NDArray[np.int32]:
    return np.asarray((embeddings @ centroids.T).argmax(axis=1), np.int32)


def _prototypes(categories: list[tuple[str, ...]], embeddings: Scores) -> tuple[dict[str, int], Scores]:
    names = sorted({label(name) for item in categories for name in item} - {""})
    rows = {name: row for row, name in enumerate(names)}
    sums = np.zeros((len(names), embeddings.shape[1]), np.float32)
    for embedding, item in zip(embeddings, categories, strict=True):
        for name in {label(raw) for raw in item} - {""}:
            sums[rows[name]] += embedding
    return rows, unit_rows(sums)
