"""Content clusters: the shared contract, the choice of clusters, preferred categories, dislikes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from models.contracts import Query, Reason, Scores, unwatched
from models.data.dataset import Dataset
from models.retrieval.cluster_fit import choose_clusters, fit_autoencoder
from models.retrieval.content_clusters import ContentClusters, ItemEncoder, fit_content_clusters
from tests.recommender_contract import (
    FAN_OF_A,
    GROUP_A,
    GROUP_B,
    N_ITEMS,
    NEVER_SEEN,
    NEW_ITEMS,
    NOW,
    RecommenderContract,
    ask,
    history,
    toy_content,
    toy_dataset,
)


def fit(dataset: Dataset, content: Scores) -> ContentClusters:
    return fit_content_clusters(dataset, content, seed=3, progress=unwatched)


class TestContentClusters(RecommenderContract):
    reason_codes = frozenset({"cluster"})
    knows_new_items = True

    def fit(self, dataset: Dataset, content: Scores) -> ContentClusters:
        return fit(dataset, content)


@pytest.fixture(scope="module")
def fitted() -> ContentClusters:
    return fit(toy_dataset(), toy_content())


def clouds(count: int, *, each: int = 60, seed: int = 0) -> Scores:
    """float32[count · each, 8]: as many clouds, far apart on the sphere."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(8, 8)))[0][:count]
    points = np.repeat(centres, each, axis=0) + rng.normal(0, 0.05, (count * each, 8))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("count", [3, 6, 8])
def test_finds_as_many_clusters_as_there_are(count: int) -> None:
    centroids, figures = choose_clusters(clouds(count), seed=1)
    assert len(centroids) == count
    assert max(figures, key=lambda figure: figure.silhouette).clusters == count


def test_more_clusters_always_lie_closer() -> None:
    _, figures = choose_clusters(clouds(6), seed=1)
    assert all(fewer.inertia >= more.inertia - 1e-4 for fewer, more in pairwise(figures))
    assert all(-1 <= figure.silhouette <= 1 for figure in figures)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_too_few_items_are_one_cluster_or_so(rows: int) -> None:
    centroids, _ = choose_clusters(clouds(1, each=rows), seed=1)
    assert 1 <= len(centroids) <= max(1, rows // 2)


def test_equal_items_are_one_cluster() -> None:
    centroids, figures = choose_clusters(np.ones((50, 4), np.float32), seed=1)
    assert len(centroids) == 1
    assert figures == []


def test_numpy_embeds_as_scikit_learn_would() -> None:
    """The weights were extracted right: decoded by the other half they would give the features back."""
    features = clouds(4)
    layers = tuple(fit_autoencoder(features, seed=1, epochs=60))
    encoder = ItemEncoder(np.zeros(8, np.float32), np.ones(8, np.float32), layers)
    embedded = encoder.embed(features)
    same = np.repeat(np.arange(4), 60)[:, None] == np.repeat(np.arange(4), 60)
    similar = embedded @ embedded.T
    assert similar[same].min() > similar[~same].max()


def test_clusters_part_the_groups(fitted: ContentClusters) -> None:
    of_a, of_b = set(fitted.clusters[list(GROUP_A)].tolist()), set(fitted.clusters[list(GROUP_B)].tolist())
    assert not of_a & of_b
    assert fitted.clusters[NEVER_SEEN] in of_a


def test_new_items_fall_into_the_cluster_of_their_like(fitted: ContentClusters) -> None:
    wider = fitted.with_new_items(NEW_ITEMS)
    assert wider.clusters[N_ITEMS] in fitted.clusters[list(GROUP_A)]
    assert wider.clusters[N_ITEMS + 1] in fitted.clusters[list(GROUP_B)]


def test_the_figures_behind_the_choice_are_kept(fitted: ContentClusters) -> None:
    chosen = fitted.parts().parameters["chosen"]
    assert chosen["clusters"] == len(fitted.centroids)
    assert {"clusters", "inertia", "elbow", "silhouette"} <= set(chosen["cluster_counts"][0])
    assert len(chosen["cluster_counts"]) > 1


def test_preferred_categories_speak_for_a_user_who_liked_nothing(fitted: ContentClusters) -> None:
    answer = fitted.recommend(ask(limit=5, preferred_categories=("B", "unheard of")))
    assert set(answer.positions.tolist()) <= set(GROUP_B)
    assert fitted.reasons(ask(preferred_categories=("b",)), answer.positions) == [Reason("cluster")] * 5


def test_likes_speak_louder_than_preferred_categories(fitted: ContentClusters) -> None:
    np.testing.assert_array_equal(
        fitted.scores(ask(FAN_OF_A, preferred_categories=("b",))), fitted.scores(ask(FAN_OF_A))
    )


def test_no_likes_and_no_known_category_is_no_opinion(fitted: ContentClusters) -> None:
    for query in (ask(), ask(preferred_categories=("unheard of",)), ask((5_000,))):
        assert np.isneginf(fitted.scores(query)).all()
    only_dislikes = Query(limit=3, at=NOW, history=history((), (4,)))
    assert np.isneginf(fitted.scores(only_dislikes)).all()


def test_a_dislike_pushes_its_cluster_down(fitted: ContentClusters) -> None:
    liked = fitted.scores(ask(FAN_OF_A))
    disliked = fitted.scores(Query(limit=10, at=NOW, history=history(FAN_OF_A, (13,))))
    assert (disliked[list(GROUP_B)] < liked[list(GROUP_B)]).all()


def test_a_dislike_counts_for_those_who_only_named_categories(fitted: ContentClusters) -> None:
    named = replace(ask(), preferred_categories=("a", "b"))
    without_b = replace(named, history=history((), (13, 14, 15)))
    assert set(fitted.recommend(replace(without_b, limit=5)).positions.tolist()) <= {*GROUP_A, NEVER_SEEN}


def test_the_latest_like_counts_most(fitted: ContentClusters) -> None:
    query = ask((0, 1, 2, 13))
    older, newer = fitted.scores(query), fitted.scores(ask((13, 0, 1, 2)))
    assert older[list(GROUP_B)].mean() > newer[list(GROUP_B)].mean()


def test_reasons_name_the_closest_liked_item(fitted: ContentClusters) -> None:
    reasons = fitted.reasons(ask((3, 15)), np.array([1, 17], np.int32))
    assert reasons == [Reason("cluster", 3), Reason("cluster", 15)]


def test_an_item_without_content_is_not_recommended() -> None:
    content = toy_content()
    content[NEVER_SEEN] = 0
    fitted = fit(toy_dataset(), content).with_new_items(np.zeros((1, 4), np.float32))
    assert np.isneginf(fitted.scores(ask(FAN_OF_A))[[NEVER_SEEN, N_ITEMS]]).all()


@pytest.mark.parametrize("n_items", [0, 1, 2, 5])
def test_small_catalogues(n_items: int) -> None:
    dataset = toy_dataset()
    items = dataset.items
    few = Dataset(
        dataset.interactions.take(dataset.interactions.items < n_items),
        replace(
            items, categories=items.categories[:n_items], tags=items.tags[:n_items], texts=items.texts[:n_items],
            creators=items.creators[:n_items], kinds=items.kinds[:n_items], published=items.published[:n_items],
            features=items.features[:n_items],
        ),
        dataset.n_users,
    )  # fmt: skip
    fitted = fit(few, toy_content()[:n_items])
    assert len(fitted.recommend(ask((0,), limit=10)).positions) == n_items


def test_without_any_content_there_is_no_opinion() -> None:
    fitted = fit(toy_dataset(), np.zeros((N_ITEMS, 0), np.float32))
    assert np.isneginf(fitted.scores(ask(FAN_OF_A))).all()
    assert np.isneginf(fitted.with_new_items(np.zeros((2, 0), np.float32)).scores(ask(FAN_OF_A))).all()
