"""How sharply attention attends: entropy, size and spread of its logits, on a few queries.

A softmax over logits that a model wrote out is read as it runs. `scaled_dot_product_attention`
never shows its logits: they are computed again, for one sample and at most 64 queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_init.architecture.ledger import Ledger

_MATRICES = 16  # heads of the leading samples
_QUERIES = 64
_MASKED = -5e3  # what masks add is -inf, the dtype's minimum, -1e9 or -1e4


class Scores(NamedTuple):
    """Places of what one attention shows: sums over queries, their number, extremes."""

    entropy: int
    open: int  # queries that see two keys or more
    largest: int
    variance: int
    keys: int

    def of(self, numbers: Sequence[float]) -> dict[str, float]:
        """Entropy, logit_max, logit_std and keys as numbers."""
        queries = numbers[self.open]
        return {
            "entropy": numbers[self.entropy] / queries if queries else math.nan,
            "logit_max": numbers[self.largest],
            "logit_std": math.sqrt(numbers[self.variance] / queries) if queries else math.nan,
            "keys": numbers[self.keys],
        }


def softmax_scores(ledger: Ledger, logits: Tensor, dim: object) -> Scores | None:
    """Read the logits (..., queries, keys) of a softmax over the keys."""
    if logits.ndim < 3 or dim not in (-1, logits.ndim - 1) or not logits.is_floating_point():
        return None
    if logits.shape[-1] < 2:
        return None
    matrices = logits.detach().flatten(0, -3)[:_MATRICES]
    return _read(ledger, matrices[:, _evenly(logits.shape[-2], logits.device)].float())


def product_scores(ledger: Ledger, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Scores | None:
    """Read the logits of a call of `scaled_dot_product_attention`, computed for one sample."""
    given = dict(zip(_NAMES, args, strict=False)) | kwargs
    query, key, mask = given["query"].detach(), given["key"].detach(), given.get("attn_mask")
    if query.ndim < 3 or query.is_nested or key.shape[-2] < 2:
        return None
    picked = _evenly(query.shape[-2], query.device)
    rows = _first(query)[..., picked, :].float()
    columns = _first(key).float()
    if rows.ndim == 3 and given.get("enable_gqa"):
        columns = columns.repeat_interleave(rows.shape[0] // columns.shape[0], 0)
    scale = given.get("scale")
    logits = rows @ columns.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if given.get("is_causal"):
        seen = torch.arange(key.shape[-2], device=query.device) <= picked[:, None]
        logits = logits.masked_fill(~seen, -math.inf)
    if mask is not None:
        # Broadcast by hand to the first sample of all leading dimensions but the heads.
        part = mask.detach()
        part = part[(None,) * (query.ndim - part.ndim)] if part.ndim < query.ndim else part
        part = _first(part)
        part = part[..., picked, :] if part.shape[-2] > 1 else part
        if part.dtype is torch.bool:
            logits = logits.masked_fill(~part, -math.inf)
        else:
            logits = logits + part.float()
    return _read(ledger, logits.reshape(-1, *logits.shape[-2:])[:_MATRICES])


_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def _first(value: Tensor) -> Tensor:
    """The heads of the first sample: of (..., H, T, D) the first (H, T, D)."""
    return value if value.ndim <= 3 else value.flatten(0, -4)[0]


def _evenly(count: int, device: torch.device) -> Tensor:
    """At most 64 evenly spaced queries, the last one included: it sees the most in a causal mask.

    Example:
        >>> _evenly(3, torch.device("cpu")).tolist()
        [0, 1, 2]
    """
    if count <= _QUERIES:
        return torch.arange(count, device=device)
    return torch.arange(1, _QUERIES + 1, device=device) * count // _QUERIES - 1


def _read(ledger: Ledger, logits: Tensor) -> Scores:
    visible = logits > _MASKED
    keys = visible.sum(-1)
    open_ = keys > 1
    shares = logits.masked_fill(~visible, -math.inf).softmax(-1)
    entropy = torch.special.entr(shares).sum(-1) / keys.clamp(min=2).log()
    kept = torch.where(visible, logits, 0.0)
    mean = kept.sum(-1) / keys.clamp(min=1)
    centered = torch.where(visible, logits - mean[..., None], 0.0)
    variance = centered.square().sum(-1) / keys.clamp(min=1)
    return Scores(
        ledger.note(torch.where(open_, entropy, 0.0).sum()),
        ledger.note(open_.sum()),
        ledger.note(kept.abs().amax()),
        ledger.note(torch.where(open_, variance, 0.0).sum()),
        ledger.note(keys.float().mean()),
    )
