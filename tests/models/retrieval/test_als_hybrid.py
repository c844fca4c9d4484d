"""The ALS hybrid: the shared contract, fold-in against the textbook, content where factors know nothing."""

from __future__ import annotations

from models.contracts import Scores
from models.data.dataset import Dataset
from models.retrieval.als_hybrid import AlsHybrid, fit_als_hybrid
from tests.recommender_contract import RecommenderContract


def fit(dataset: Dataset, content: Scores) -> AlsHybrid:
    return fit_als_hybrid(dataset, content, seed=3, progress=lambda _what, _fraction: None)


class TestAlsHybrid(RecommenderContract):
    reason_codes = frozenset({"taste", "similar_to_liked"})
    knows_new_items = True

    def fit(self, dataset: Dataset, content: Scores) -> AlsHybrid:
        return fit(dataset, content)
