"""What `content_clusters` learns with scikit-learn, in a module of its own so that serving needn't import it."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score
from sklearn.neural_network import MLPRegressor

from models.contracts import Scores

HIDDEN = 64
EMBEDDING = 24
MOST_ROWS = 50_000
"""Items that the autoencoder and the clusters are learned on; a larger catalogue is sampled."""
SILHOUETTE_ROWS = 2_000
CLUSTER_COUNTS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

Layer = tuple[Scores, Scores]


class ClusterCount(NamedTuple):
    """How well one number of clusters fits.

    inertia:    mean squared distance to the nearest centroid
    elbow:      how far the inertia lies below the straight line between both ends of the range, 0–1
    silhouette: -1–1 (Rousseeuw 1987), on a sample
    """

    clusters: int
    inertia: float
    elbow: float
    silhouette: float


def fit_autoencoder(features: Scores, *, seed: int, epochs: int = 30) -> list[Layer]:
    """Weights and biases from the features to the bottleneck, each layer to be followed by tanh.

    features: float32[n, d], n ≥ 2
    """
    rows = _sample(features, seed)
    width = min(EMBEDDING, features.shape[1])
    network = MLPRegressor(
        hidden_layer_sizes=(HIDDEN, width, HIDDEN), activation="tanh", alpha=1e-4,
        batch_size=min(128, len(rows)), max_iter=epochs, tol=1e-5, random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        # A fixed number of epochs is the plan; the last per cent of the loss moves no cluster.
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(rows, rows)
    return [
        (np.asarray(weights, np.float32), np.asarray(bias, np.float32))
        for weights, bias in zip(network.coefs_[:2], network.intercepts_[:2], strict=True)
    ]


def choose_clusters(embedding: Scores, *, seed: int) -> tuple[Scores, list[ClusterCount]]:
    """Centroids float32[k, e] for the k that elbow and silhouette together like best, and all the figures.

    embedding: float32[n, e], n ≥ 1
    """
    rows = _sample(embedding, seed)
    distinct = len(np.unique(rows.round(6), axis=0))
    counts = [count for count in CLUSTER_COUNTS if count < min(distinct, len(rows) / 2)]
    if not counts:
        return rows.mean(axis=0, keepdims=True), []
    fits = [KMeans(count, n_init=1, random_state=seed).fit(rows) for count in counts]
    inertias = np.array([fit.inertia_ / len(rows) for fit in fits])
    silhouettes = np.array([_silhouette(rows, fit.labels_, seed) for fit in fits])
    elbows = _elbows(np.log(counts), inertias)
    figures = [
        ClusterCount(count, float(inertia), float(elbow), float(silhouette))
        for count, inertia, elbow, silhouette in zip(counts, inertias, elbows, silhouettes, strict=True)
    ]
    best = int((_stretched(elbows) + _stretched(silhouettes)).argmax())
    return np.asarray(fits[best].cluster_centers_, np.float32), figures


def _sample(rows: Scores, seed: int) -> Scores:
    if len(rows) <= MOST_ROWS:
        return rows
    return rows[np.random.default_rng(seed).choice(len(rows), MOST_ROWS, replace=False)]


def _silhouette(rows: Scores, labels: NDArray[np.int32], seed: int) -> float:
    which = np.random.default_rng(seed).permutation(len(rows))[:SILHOUETTE_ROWS]
    if len(np.unique(labels[which])) in (1, len(which)):
        return 0.0
    return float(silhouette_score(rows[which], labels[which]))


def _elbows(places: NDArray[np.float64], inertias: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance below the chord, with both axes stretched to 0–1 (Satopää et al. 2011, "Kneedle")."""
    return np.asarray(1 - _stretched(places) - _stretched(inertias))


def _stretched(values: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = np.ptp(values)
    return np.asarray((values - values.min()) / spread) if spread > 0 else np.zeros(len(values))
