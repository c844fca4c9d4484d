"""Content clusters: the shared contract, the choice of clusters, preferred categories, dislikes."""

from __future__ import annotations

from models.contracts import Scores
from models.data.dataset import Dataset
from models.retrieval.content_clusters import ContentClusters, fit_content_clusters
from tests.recommender_contract import RecommenderContract


def fit(dataset: Dataset, content: Scores) -> ContentClusters:
    return fit_content_clusters(dataset, content, seed=3, progress=lambda _what, _fraction: None)


class TestContentClusters(RecommenderContract):
    reason_codes = frozenset({"cluster"})
    knows_new_items = True

    def fit(self, dataset: Dataset, content: Scores) -> ContentClusters:
        return fit(dataset, content)
