"""Fitting `SessionAttention` in torch (the extra `train`). Serving never imports this module.

SASRec (Kang and McAuley, "Self-attentive sequential recommendation", 2018) with what later work found to matter more
than the architecture: a softmax over thousands of negatives instead of one (Klenitskiy and Vasilev, "Turning dross
into gold loss: is BERT4Rec really better than SASRec?", 2023), its samples corrected by log Q (Bengio and Senécal,
2008), and vectors of length 1 with a learned temperature (Gupta et al., "NISER: normalized item and session
representations", 2019). Every beginning of a session is learned from in one pass, since no track sees what follows it.
Distances between tracks replace absolute places, so the end of a long session looks like the end of a short one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.contracts import Progress, Scores, unwatched
from models.data.sessions import LEAST_LISTENED, Sessions
from models.retrieval.next_track.answers import LONGEST
from models.retrieval.next_track.attention import SessionAttention
from models.retrieval.next_track.first_vectors import first_vectors


@dataclass(frozen=True, slots=True)
class Training:
    """How long and how hard to learn. Chosen on the newest sessions of nowplaying's training data."""

    width: int = 64
    heads: int = 2
    layers: int = 1
    dropout: float = 0.2
    epochs: int = 12
    batch: int = 512
    negatives: int = 3_000
    rate: float = 2e-3
    smoothing: float = 0.75
    """Negatives are drawn by popularity to this power."""


class _Batch(NamedTuple):
    """Sessions of about the same length.

    tracks:    int64[b, n + 1], padded with -1 behind the end
    fractions: float32[b, n + 1], NaN where unknown
    """

    tracks: Tensor
    fractions: Tensor


def fit_session_attention(
    sessions: Sessions,
    *,
    resumed: SessionAttention | None = None,
    training: Training | None = None,
    seed: int = 0,
    progress: Progress = unwatched,
    each_epoch: Callable[[int, SessionAttention], Any] = lambda *_: None,
) -> SessionAttention:
    """Learn on the threads that torch was given; in nowplaying an epoch takes about a minute of one core.

    resumed:    learned before from some of these sessions, of the same shape; goes on from there
    each_epoch: called with the number of the epoch and what was learned by then
    """
    chosen = training or Training()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    first = first_vectors(sessions.listened(), chosen.width, seed=seed) if resumed is None else resumed.vectors
    network = _Network(chosen, first, knows_listening=bool(np.isfinite(sessions.fractions).any()))
    if resumed is not None:
        network.resume(resumed)
    sampler = _Negatives(sessions, chosen)
    optimizer = torch.optim.AdamW(network.groups(), lr=chosen.rate, fused=True)
    steps_each = sum(1 for _ in _batches(sessions, chosen.batch, rng))
    schedule = _warm_then_down(optimizer, steps_each * chosen.epochs)
    for epoch in range(chosen.epochs):
        network.train()
        for step, batch in enumerate(_batches(sessions, chosen.batch, rng)):
            loss = network.loss(batch, sampler)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                progress(f"session_attention: loss {loss.item():.3f}", (epoch + step / steps_each) / chosen.epochs)
        each_epoch(epoch, network.frozen())
    return network.frozen()


class _Network(nn.Module):
    def __init__(self, chosen: Training, first: Scores, *, knows_listening: bool) -> None:
        super().__init__()
        width = chosen.width
        drawn = torch.randn(len(first), width) / math.sqrt(width)
        self.vectors = nn.Parameter(torch.from_numpy(np.array(first, np.float32)) + 0.1 * drawn)
        self.fraction = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(_Layer(chosen) for _ in range(chosen.layers))
        self.last = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(12.0)))
        self.listening = nn.Linear(width, width)
        self.usual_listening = nn.Parameter(torch.zeros(len(first)))
        self.mean_listening = nn.Parameter(torch.tensor(1.0))
        self.dropout = nn.Dropout(chosen.dropout)
        self.knows_listening = knows_listening

    def groups(self) -> list[dict[str, Any]]:
        """Vectors have a length of 1 wherever they are used, so decay would only turn up their rate."""
        free = [self.vectors, self.log_temperature, self.mean_listening]
        rest = [parameter for parameter in self.parameters() if all(parameter is not other for other in free)]
        return [{"params": free, "weight_decay": 0.0}, {"params": rest, "weight_decay": 1e-2}]

    def unit(self, positions: Tensor) -> Tensor:
        return functional.normalize(functional.embedding(positions, self.vectors), dim=-1)

    def states(self, rows: Tensor, fractions: Tensor) -> Tensor:
        """float32[b, n, width]: what is expected after each track."""
        state = self.dropout(rows * math.sqrt(rows.shape[-1]) + centred(fractions)[..., None] * self.fraction)
        for layer in self.layers:
            state = layer(state)
        return self.out(self.last(state))

    def loss(self, batch: _Batch, sampler: _Negatives) -> Tensor:
        heard, following = batch.tracks[:, :-1], batch.tracks[:, 1:]
        is_real = following >= 0
        state = self.states(self.unit(heard.clamp(min=0)), batch.fractions[:, :-1])[is_real]
        targets = following[is_real]
        taken = self.unit(targets)
        fractions = batch.fractions[:, 1:][is_real]
        chosen = ~(fractions < LEAST_LISTENED)
        directions = functional.normalize(state[chosen], dim=-1)
        loss = self._choice_loss(directions, taken[chosen], targets[chosen], sampler)
        known = ~torch.isnan(fractions)
        return loss + self._listening_loss(state[known], taken[known], targets[known], fractions[known])

    def _choice_loss(self, state: Tensor, taken: Tensor, targets: Tensor, sampler: _Negatives) -> Tensor:
        drawn = sampler.draw()
        asked = self.log_temperature.exp() * state
        right = (asked * taken).sum(-1) - sampler.log_q[targets]
        losses = _LogSum.apply(asked, self.unit(drawn), right, targets, drawn, sampler.log_q[drawn]) - right
        return losses.sum() / max(len(targets), 1)

    def _listening_loss(self, state: Tensor, taken: Tensor, targets: Tensor, fractions: Tensor) -> Tensor:
        if len(fractions) == 0:
            return state.new_zeros(())
        logits = (self.listening(state) * taken).sum(-1) + self.usual_listening[targets] + self.mean_listening
        return functional.binary_cross_entropy_with_logits(logits, fractions.clamp(0, 1))

    @torch.no_grad()
    def resume(self, learned: SessionAttention) -> None:
        """Take over everything that `frozen` gave away."""
        self.vectors.copy_(torch.from_numpy(np.array(learned.vectors)))
        self.fraction.copy_(torch.from_numpy(np.array(learned.fraction)))
        self.log_temperature.fill_(math.log(learned.temperature))
        self.usual_listening.copy_(torch.from_numpy(np.array(learned.usual_listening)) - self.mean_listening)
        _fill_norm(self.last, learned.last)
        _fill_linear(self.out, learned.out)
        _fill_linear(self.listening, learned.listening)
        for layer, arrays in zip(self.layers, learned.layers, strict=True):
            layer.distance.copy_(torch.from_numpy(np.array(arrays["distance"])))
            for name in ("before", "between"):
                _fill_norm(getattr(layer, name), arrays[name])
            for name in ("project", "join", "inner", "outer"):
                _fill_linear(getattr(layer, name), arrays[name])

    @torch.no_grad()
    def frozen(self) -> SessionAttention:
        self.eval()
        arrays = {name: array(value) for name, value in self.named_parameters() if not name.startswith("layers.")}
        vectors = functional.normalize(self.vectors, dim=-1)
        return SessionAttention(
            vectors=array(vectors),
            layers=tuple(layer.frozen() for layer in self.layers),
            fraction=arrays["fraction"],
            last=np.stack([arrays["last.weight"], arrays["last.bias"]]),
            out=np.vstack([arrays["out.weight"].T, arrays["out.bias"]]),
            temperature=float(self.log_temperature.exp()),
            listening=np.vstack([arrays["listening.weight"].T, arrays["listening.bias"]]),
            usual_listening=arrays["usual_listening"] + arrays["mean_listening"],
            knows_listening=self.knows_listening,
        )


class _Layer(nn.Module):
    """Self-attention and a small network, each added to what came in; normalised before (Xiong et al., 2020)."""

    def __init__(self, chosen: Training) -> None:
        super().__init__()
        width = chosen.width
        self.heads, self.rate = chosen.heads, chosen.dropout
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.distance = nn.Parameter(-0.3 * torch.arange(LONGEST).repeat(chosen.heads, 1))
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(chosen.dropout)

    def forward(self, state: Tensor) -> Tensor:
        b, n, width = state.shape
        split = (b, n, 3, self.heads, width // self.heads)
        query, key, value = self.project(self.before(state)).reshape(split).permute(2, 0, 3, 1, 4)
        back = torch.arange(n)[:, None] - torch.arange(n)
        bias = self.distance[:, back.clamp(min=0)].masked_fill(back < 0, -torch.inf)
        logits = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads) + bias
        found = (logits.softmax(-1) @ value).transpose(1, 2).reshape(b, n, width)
        state = state + self.dropout(self.join(found))
        inner = functional.gelu(self.inner(self.between(state)), approximate="tanh")
        return state + self.dropout(self.outer(inner))

    def frozen(self) -> dict[str, NDArray[np.float32]]:
        stacked = {
            "before": [self.before.weight, self.before.bias], "between": [self.between.weight, self.between.bias],
        }  # fmt: skip
        linear = {"project": self.project, "join": self.join, "inner": self.inner, "outer": self.outer}
        arrays = {name: np.stack([array(value) for value in values]) for name, values in stacked.items()}
        arrays |= {name: np.vstack([array(part.weight).T, array(part.bias)]) for name, part in linear.items()}
        return arrays | {"distance": array(self.distance)}


class _LogSum(torch.autograd.Function):
    """log(exp(right) + Σ exp(asked · drawn - log q)), by row.

    Written out because the large matrix of exponentials is then touched three times instead of twelve, which is most
    of an epoch. Without a maximum taken off: cosines times a temperature stay far below what float32 can hold.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - torch calls it by place
        ctx: Any, asked: Tensor, rows: Tensor, right: Tensor, targets: Tensor, drawn: Tensor, log_q: Tensor
    ) -> Tensor:
        powers = torch.addmm(-log_q, asked, rows.T).exp_()
        by_track, order = drawn.sort()
        first, end = torch.searchsorted(by_track, targets), torch.searchsorted(by_track, targets, right=True)
        times = end - first
        hit = torch.repeat_interleave(torch.arange(len(targets)), times)
        within = torch.arange(len(hit)) - torch.repeat_interleave(times.cumsum(0) - times, times)
        powers[hit, order[first[hit] + within]] = 0
        of_right = right.exp()
        total = powers.sum(1) + of_right
        ctx.save_for_backward(asked, rows, powers, of_right, total)
        return total.log()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        asked, rows, powers, of_right, total = ctx.saved_tensors
        share = slopes[0] / total
        return share[:, None] * (powers @ rows), powers.T @ (share[:, None] * asked), share * of_right, None, None, None


class _Negatives:
    """Tracks to tell the right one from, drawn by popularity.

    log_q: float32[n_items], how often each is expected among the drawn
    """

    def __init__(self, sessions: Sessions, chosen: Training) -> None:
        counts = np.bincount(sessions.tracks, minlength=sessions.n_items).astype(np.float64)
        drawn_by = (counts + 1) ** chosen.smoothing
        self._bounds = torch.from_numpy(np.cumsum(drawn_by / drawn_by.sum()))
        self._count = chosen.negatives
        self.log_q = torch.from_numpy(np.log(chosen.negatives * drawn_by / drawn_by.sum()).astype(np.float32))

    def draw(self) -> Tensor:
        """int64[negatives]"""
        found = torch.searchsorted(self._bounds, torch.rand(self._count, dtype=torch.float64))
        return found.clamp(max=len(self.log_q) - 1)


def centred(fractions: Tensor) -> Tensor:
    """Around 0, unknown ones at it."""
    return torch.nan_to_num(fractions - 0.5, nan=0.0)


def _batches(sessions: Sessions, size: int, rng: np.random.Generator) -> Iterator[_Batch]:
    """Everything once, in random order; sessions of like length together, long ones cut into windows."""
    starts, lengths = _windows(sessions)
    order = rng.permutation(len(starts))
    order = order[np.argsort(lengths[order], kind="stable")]
    bounds = [0]
    # As many tracks in each batch, so that each costs the same.
    tracks = np.cumsum(lengths[order])
    while bounds[-1] < len(order):
        done = tracks[bounds[-1] - 1] if bounds[-1] else 0
        bounds.append(max(bounds[-1] + 1, int(np.searchsorted(tracks, done + size * 8, side="right"))))
    for part in rng.permutation(len(bounds) - 1):
        chosen = order[bounds[part] : bounds[part + 1]]
        offsets = np.arange(lengths[chosen].max())
        is_real = offsets < lengths[chosen][:, None]
        where = np.where(is_real, starts[chosen][:, None] + offsets, 0)
        tracks_of = np.where(is_real, sessions.tracks[where], -1).astype(np.int64)
        yield _Batch(torch.from_numpy(tracks_of), torch.from_numpy(sessions.fractions[where]))


def _windows(sessions: Sessions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and lengths of pieces of 2 … LONGEST + 1 tracks; neighbouring ones share a track."""
    counts = np.maximum(-(-(sessions.lengths - 1) // LONGEST), 0)
    of_session = np.repeat(np.arange(len(sessions)), counts)
    nth = np.arange(len(of_session)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = sessions.bounds[of_session] + nth * LONGEST
    return starts, np.minimum(LONGEST + 1, sessions.bounds[of_session + 1] - starts)


def _warm_then_down(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    warm = max(min(200, steps // 10), 1)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.02, 1 - step / max(steps, 1)))
    )


def _fill_norm(norm: nn.LayerNorm, arrays: NDArray[np.float32]) -> None:
    norm.weight.copy_(torch.from_numpy(np.array(arrays[0])))
    norm.bias.copy_(torch.from_numpy(np.array(arrays[1])))


def _fill_linear(linear: nn.Linear, weights: NDArray[np.float32]) -> None:
    linear.weight.copy_(torch.from_numpy(np.array(weights[:-1].T)))
    linear.bias.copy_(torch.from_numpy(np.array(weights[-1])))


def array(tensor: Tensor) -> NDArray[np.float32]:
    return np.array(tensor.detach().numpy(), np.float32)
