"""Bags of terms as vectors: TF-IDF over a bounded vocabulary, reduced by a truncated SVD when it is wide."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds

from models.contracts import Scores

LONGEST_TEXT = 5_000
"""Characters of a text that are read: more changes a topic little and would make one item slow."""
LONGEST_LABEL = 200

# Letters and digits with the combining marks that Python's \w leaves out (Latin accents, Hebrew and Arabic
# points, vowel signs of the Indic and South-East Asian scripts): without them such words fall to pieces.
_WORD = re.compile(r"[\w\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0fff]+")
# Thai, Lao, kana, Han: written without spaces, so a run of them is cut into pairs of characters.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")


def label(raw: str) -> str:
    """One spelling for a category, tag or kind; '' where nothing printable is left."""
    folded = unicodedata.normalize("NFKC", raw[:LONGEST_LABEL]).casefold()
    return " ".join("".join(c if c.isprintable() else " " for c in folded).split())


def words(text: str) -> list[str]:
    """Lower-case words of two characters or more; unspaced scripts in overlapping pairs."""
    folded = unicodedata.normalize("NFKC", text[:LONGEST_TEXT]).casefold()
    if not _UNSPACED.search(folded):
        return [word for word in _WORD.findall(folded) if len(word) > 1]
    return [part for word in _WORD.findall(folded) for part in _parts(word)]


def _parts(word: str) -> list[str]:
    if _UNSPACED.search(word):
        return [word[i : i + 2] for i in range(max(1, len(word) - 1))]
    return [word] if len(word) > 1 else []


@dataclass(frozen=True, slots=True)
class TermVectors:
    """Turns bags of terms into vectors of unit length; a bag without a known term becomes zeros.

    vocabulary: term → column
    idf:        float32[t]
    projection: float32[t, d], or None where the vocabulary is narrow enough to be used as it is
    """

    vocabulary: dict[str, int]
    idf: NDArray[np.float32]
    projection: NDArray[np.float32] | None

    @property
    def dimensions(self) -> int:
        return len(self.idf) if self.projection is None else self.projection.shape[1]

    def encode(self, bags: Sequence[Sequence[str]]) -> Scores:
        """float32[n, d]"""
        weighted = _weighted(bags, self.vocabulary, self.idf)
        dense = weighted.toarray() if self.projection is None else weighted @ self.projection
        return unit_rows(np.asarray(dense, np.float32))


def fit_term_vectors(
    bags: Sequence[Sequence[str]], *, widest: int, rarest: int, most_terms: int, seed: int
) -> TermVectors:
    """Learn a vocabulary from bags of terms.

    widest:     dimensions above which the vocabulary is projected (latent semantic analysis, Deerwester 1990)
    rarest:     items that a term must occur in
    most_terms: bound of the vocabulary; the most frequent stay
    """
    frequency = Counter(term for bag in bags for term in set(bag))
    kept = sorted((-count, term) for term, count in frequency.items() if count >= rarest)[:most_terms]
    vocabulary = {term: column for column, (_, term) in enumerate(kept)}
    counts = np.array([-negative for negative, _ in kept], np.float64)
    # The floor keeps the one category of a one-category catalogue, without letting it drown rarer terms.
    idf = (np.log((1 + len(bags)) / (1 + counts)) + 0.5).astype(np.float32)
    if len(vocabulary) <= widest:
        return TermVectors(vocabulary, idf, None)
    return TermVectors(vocabulary, idf, _projection(_weighted(bags, vocabulary, idf), widest, seed))


def unit_rows(rows: Scores) -> Scores:
    """float32[n, d] scaled to length 1; rows of zeros stay zeros."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 1e-12), np.float32)


def _weighted(bags: Sequence[Sequence[str]], vocabulary: dict[str, int], idf: NDArray[np.float32]) -> sparse.csr_array:
    """float32[n, t]: (1 + log count) · idf, rows of unit length."""
    counted = [Counter(_columns(bag, vocabulary)) for bag in bags]
    ends = np.cumsum([0, *map(len, counted)])
    columns = np.fromiter((c for bag in counted for c in bag), np.int64, ends[-1])
    counts = np.fromiter((n for bag in counted for n in bag.values()), np.float32, ends[-1])
    values = (1 + np.log(counts)) * idf[columns]
    rows = np.repeat(np.arange(len(bags)), np.diff(ends))
    lengths = np.sqrt(np.bincount(rows, values**2, minlength=len(bags)))
    return sparse.csr_array(
        ((values / lengths[rows]).astype(np.float32), columns, ends), shape=(len(bags), len(vocabulary))
    )


def _columns(bag: Iterable[str], vocabulary: dict[str, int]) -> list[int]:
    return [vocabulary[term] for term in bag if term in vocabulary]


def _projection(weighted: sparse.csr_array, widest: int, seed: int) -> NDArray[np.float32]:
    """float32[t, d]: the leading right singular vectors."""
    start = np.random.default_rng(seed).uniform(0.1, 1.0, min(weighted.shape))
    rank = min(widest, min(weighted.shape) - 1)
    if rank < 1:
        return np.ones((weighted.shape[1], 1), np.float32)
    _, _, right = svds(weighted.astype(np.float64), k=rank, v0=start, return_singular_vectors="vh")
    return np.ascontiguousarray(right[::-1].T, dtype=np.float32)
