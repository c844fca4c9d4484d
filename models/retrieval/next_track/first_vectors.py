"""Where self-attention starts: tracks heard near each other get vectors that are near each other.

A truncated SVD of dampened pointwise mutual information, which is what word2vec factorises (Levy and Goldberg, "Neural
word embedding as implicit matrix factorization", 2014). It takes seconds.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from models.contracts import Scores
from models.data.sessions import Sessions
from models.retrieval.next_track.transitions import ONE_WAY, transitions

_SHIFT = 0.02
"""What a pair's ratio to chance is multiplied by before the logarithm: pairs met once in a while count little."""


def first_vectors(sessions: Sessions, width: int, *, seed: int) -> Scores:
    """float32[n_items, width], rows of length 1, or of zeros where a track was never heard with another."""
    links = transitions(sessions, ONE_WAY)
    both = sparse.coo_array(links + links.T)
    sums = np.asarray(both.sum(axis=1)).ravel()
    by_chance = sums[both.coords[0]] * sums[both.coords[1]] / max(float(sums.sum()), 1e-9)
    information = np.log1p(_SHIFT * both.data / np.maximum(by_chance, 1e-9)).astype(np.float32)
    matrix = sparse.csr_matrix((information, both.coords), shape=both.shape)
    rank = min(width, *matrix.shape)
    found, strengths, _ = randomized_svd(matrix, rank, n_iter=3, random_state=seed)
    vectors = np.zeros((sessions.n_items, width), np.float32)
    vectors[:, :rank] = found * np.sqrt(strengths)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, lengths, out=vectors, where=lengths > 1e-9))
