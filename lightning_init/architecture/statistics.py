"""What the values of one tensor tell: drawn by its layer, drawn by somebody, set, or trained.

Three kinds of evidence, none of which needs a second copy of the model. A constructor's uniform
draw has exact bounds, which training crosses at once and softly (`looks_default`, `has_drifted`).
Independent draws have no structure, trained matrices do (`has_structure`). And identities, tables
of sines and the like have structure that nobody learned (`is_pattern`).

The thresholds are 5 to 8 standard errors, so that a model of a thousand tensors gives no false
alarm; `benchmarks/provenance.py` measures what they do on models of known origin.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_init.architecture.layers import Default
from lightning_init.architecture.sharded import whole

_FEW = 16  # elements below which a tensor's spread says nothing
_ITERATIONS = 30  # of the power method; a full decomposition takes a hundred times longer
_PART = 512  # rows and columns of a tensor that the tests look at
_ROUND = tuple(m * 10.0**e for e in range(-6, 2) for m in (1, 2, 5))  # what people type as a std
_GAINS = (1.0, 2**0.5, 3**-0.5, 5 / 3, 0.5)  # xavier, kaiming, torch's a=sqrt(5), tanh, small heads
_TRUNCATED = 0.8796  # std of a standard normal cut at two standard deviations


def looks_default(tensor: Tensor, default: Default | None, padding_idx: int | None = None) -> bool:
    """Whether a tensor could be what its layer's constructor drew.

    A uniform default has exact bounds, which training crosses at once; its spread must agree
    within 6 standard errors. An unknown default counts as "no".

    Example:
        >>> fresh = torch.nn.Linear(100, 100).weight
        >>> looks_default(fresh, Default("uniform", 0.1))
        True
        >>> looks_default(fresh * 1.01, Default("uniform", 0.1))
        False
    """
    if default is None or not readable(tensor):
        return default is not None
    values = whole(tensor)
    if default.kind == "constant":
        return bool((values == default.value).all())
    if padding_idx is not None and tensor.ndim == 2 and tensor.shape[0] > 1:
        rows = torch.arange(values.shape[0], device=values.device)
        values = values[rows != padding_idx % tensor.shape[0]]
    values = part(values).float() if tensor.ndim > 1 else values[:_PART].float()
    if (n := values.numel()) == 0:
        return True
    largest = float(values.abs().max())
    if largest < default.value * 10 ** (-7 / n):  # so small with probability 1e-7 at most
        return False
    if default.kind == "uniform" and largest > default.value * _slack(tensor):
        return False
    expected = default.value / (math.sqrt(3) if default.kind == "uniform" else 1)
    rms = float(torch.linalg.vector_norm(values)) / math.sqrt(n)
    if n < _FEW:  # no statistics on a handful of numbers: within 6 sigma is all one can ask
        return largest <= 6 * expected
    spread = 0.9 if default.kind == "uniform" else 2.0  # variance of (w / std)^2
    if abs(rms**2 / expected**2 - 1) > 6 * math.sqrt(spread / n):
        return False
    return abs(float(values.mean())) <= 6 * expected / math.sqrt(n)


def has_drifted(tensor: Tensor, default: Default | None) -> bool:
    """Whether a tensor is a uniform default draw whose sharp edges a few steps have blurred.

    A wider uniform draw has entries up to its largest one with equal density: n (1 - b / max) of n
    lie beyond the bound b. Steps of different sizes leave fewer, by 5 standard errors at least;
    kurtosis (1.8 of a uniform, 3 of a normal draw) and spread stay near those of
    the draw.

    Example:
        >>> draw = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) - 0.5
        >>> moved = draw + 0.01 * torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
        >>> [has_drifted(w, Default("uniform", 0.5)) for w in (draw, draw * 1.05, moved)]
        [False, False, True]
    """
    if default is None or default.kind != "uniform" or not readable(tensor) or tensor.ndim < 2:
        return False
    size = part(tensor).float().abs().flatten() / default.value
    n, largest = size.numel(), float(size.max()) if size.numel() else 0.0
    beyond = int((size > _slack(tensor)).sum())
    if beyond < 5 or not math.isfinite(largest):
        return False
    square = float((size**2).mean())
    if not 0.75 < 3 * square < 1.35 or float((size**4).mean()) / square**2 > 2.2:
        return False
    expected = n * (1 - 1 / largest)
    return expected - beyond > 5 * math.sqrt(expected)


def is_constant(tensor: Tensor) -> bool:
    """Whether all values are the same, or those of each gate (an LSTM has 4, a GRU 3).

    Example:
        >>> is_constant(torch.zeros(5)), is_constant(torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0]))
        (True, True)
        >>> is_constant(torch.arange(6.0))
        False
    """
    if not readable(tensor) or tensor.numel() == 0:
        return False
    flat, n = whole(tensor).flatten(), tensor.numel()
    counts = [1] + [count for count in (3, 4) if n % count == 0 and n > count]
    gates = (flat.view(count, -1) for count in counts)
    return any(bool((gate == gate[:, :1]).all()) for gate in gates)


def is_pattern(tensor: Tensor) -> bool:
    """Whether a tensor of two or more dimensions was set, not drawn or learned.

    Equal rows or columns; at most one nonzero entry per row, all of one size (identity, Dirac,
    permutation); a Hadamard matrix; a table of sines and cosines.

    Example:
        >>> is_pattern(0.5 * torch.eye(4, 6)), is_pattern(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        (True, True)
        >>> is_pattern(torch.tensor([[1.0, 1.0], [0.0, -1.0]]))  # ternary weights are trained
        False
    """
    if tensor.ndim < 2 or not readable(tensor) or tensor.numel() == 0:
        return False
    sample = part(tensor)
    if bool((sample == sample[:1]).all()) or bool((sample == sample[:, :1]).all()):
        return True
    matrix = whole(tensor)[:_PART].flatten(1).float().cpu()
    size = matrix.abs()
    if bool(((size == 0) | (size == size.max())).all()):
        return int((size != 0).sum(1).max()) == 1 or _orthogonal(matrix)
    return _sines(matrix)


def has_structure(tensor: Tensor) -> bool:
    """Whether a tensor of two or more dimensions differs from independent equal draws.

    Looks at a part of at most 512 x 512: excess kurtosis above 0.3, row or column means or
    variances that spread 8 standard errors too widely, or a singular value 6 Tracy-Widom units
    beyond the Marchenko-Pastur edge. Rows of zeros (padding) and the mean of a square
    tensor's diagonal (an identity beside noise) do not count, nor do zeros that every column has
    equally many of (`torch.nn.init.sparse_`).

    Returns:
        False for independent entries of equal variance, for orthogonal tensors and patterns.

    References:
        Marchenko & Pastur (1967); Johnstone (2001), Annals of Statistics 29(2), eq. 1.3-1.4.

    Example:
        >>> noise = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
        >>> has_structure(noise), has_structure(noise + noise[:, :1])
        (False, True)
    """
    if tensor.ndim < 2 or not readable(tensor) or is_pattern(tensor):
        return False
    matrix = part(tensor).float().cpu()
    matrix = matrix[(matrix != 0).any(1)]
    rows, columns = matrix.shape
    if min(rows, columns) < 8:
        return False
    if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1] == rows == columns:
        matrix = matrix - torch.eye(rows) * (matrix.diagonal().mean() - matrix.mean())
    std = float(matrix.std())
    if not math.isfinite(std) or std <= 1e-6 * float(matrix.abs().max()):  # constant, or rounding
        return False
    sparse = bool((matrix == 0).any()) and _sparse(tensor)
    drawn = matrix[matrix != 0] if sparse else matrix.flatten()
    if _kurtosis(drawn) - 3 > max(0.3, 8 * math.sqrt(24 / drawn.numel())):
        return True
    matrix = (matrix - matrix.mean()) / std
    fourth = max(float((matrix**4).mean()), 1.0)
    for axis, count, size in ((1, rows, columns), (0, columns, rows)):
        means, variances = matrix.mean(axis), matrix.var(axis)
        for values, variance in ((means, 1 / size), (variances, (fourth - 1) / size)):
            spread = float(values.var()) / max(variance, 1e-12)
            if (spread - 1) / math.sqrt(2 / count) > 8:
                return True
    if sparse:  # the edge below holds for entries with moderate tails
        return False
    top = _top_singular_value(matrix) ** 2
    edge = (math.sqrt(rows - 1) + math.sqrt(columns)) ** 2
    unit = math.sqrt(edge) * (1 / math.sqrt(rows - 1) + 1 / math.sqrt(columns)) ** (1 / 3)
    return bool((top - edge) / unit > 6)


def is_known_draw(tensor: Tensor, fan_in: float, fan_out: float) -> bool:
    """Whether a tensor could be a scheme's draw: orthogonal, or with the std of a known law.

    The std must agree within 4 standard errors with a round number (or the std of a uniform or
    truncated draw with round bounds), or with gain / sqrt(fan) of the usual gains and fans. That is
    evidence only together with more: on small tensors nearly any std agrees with something.

    Example:
        >>> draw = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
        >>> [is_known_draw(draw * std, 256, 256) for std in (0.02, 0.0091, 256**-0.5)]
        [True, False, True]
    """
    if not readable(tensor) or tensor.numel() < 2 or tensor.ndim < 2:
        return False
    if is_pattern(tensor) or _sparse(tensor):
        return True
    values = part(tensor).float().cpu()
    if _orthogonal(values):
        return True
    values, n = values.flatten(), values.numel()
    std, shape = float(values.std()), _kurtosis(values)
    noise = 8 * math.sqrt(24 / n)
    if abs(float(values.mean())) > 5 * std / math.sqrt(n) or not 1.7 - noise < shape < 3.2 + noise:
        return False
    fans = [f for f in (fan_in, fan_out, (fan_in + fan_out) / 2) if math.isfinite(f) and f > 0]
    known = [s * f for s in _ROUND for f in (1.0, 3**-0.5, _TRUNCATED)]
    known += [gain * fan**-0.5 for gain in _GAINS for fan in fans]
    return any(abs(std / law - 1) < 4 * math.sqrt(max(shape - 1, 0.8) / (4 * n)) for law in known)


def readable(tensor: Tensor) -> bool:
    """Whether a tensor has values that can be judged.

    Example:
        >>> readable(torch.zeros(2)), readable(torch.zeros(2, device="meta"))
        (True, False)
    """
    return not is_lazy(tensor) and not tensor.is_meta and tensor.is_floating_point()


def part(tensor: Tensor) -> Tensor:
    """At most 512 rows, evenly spaced, and the first 512 columns, of a tensor as a matrix.

    Kernels are read as (out, in x taps); stacked matrices, as of experts, one below the other.

    Example:
        >>> part(torch.zeros(600, 4, 3, 3)).shape, part(torch.zeros(8, 64, 32)).shape
        (torch.Size([512, 36]), torch.Size([512, 32]))
    """
    values = whole(tensor)
    matrix = values.flatten(1)
    if tensor.ndim > 2 and min(stacked := values.flatten(0, 1).flatten(1).shape) > min(
        matrix.shape
    ):
        matrix = matrix.reshape(stacked)
    if len(matrix) > _PART:
        matrix = matrix[torch.linspace(0, len(matrix) - 1, _PART, device=matrix.device).long()]
    return matrix[:, :_PART]


def _slack(tensor: Tensor) -> float:
    """Rounding may carry a value this far over a bound."""
    return float(1 + 2 ** (-7 if tensor.dtype in (torch.bfloat16, torch.float16) else -20))


def _kurtosis(values: Tensor) -> float:
    centered = values - values.mean()
    return float((centered**4).mean() / (centered**2).mean() ** 2)


def _orthogonal(matrix: Tensor) -> bool:
    """Whether rows or columns, or those of each square block, are orthogonal and of one length."""
    rows, columns = matrix.shape
    blocks = [matrix] if rows % columns or rows == columns else [matrix, matrix[:columns]]
    for block in blocks:
        tall = block if block.shape[0] >= block.shape[1] else block.T
        gram = tall.T @ tall
        scale = float(gram.diagonal().mean())
        if scale > 0 and float((gram / scale - torch.eye(len(gram))).abs().max()) < 1e-3:
            return len(gram) > 1
    return False


def _sines(matrix: Tensor) -> bool:
    """Whether position 0 has zeros and ones, half each, and all rows the same length."""
    columns = matrix.shape[1]
    if columns % 2 or len(matrix) < 3 or int((matrix[0] == 1).sum()) * 2 != columns:
        return False
    length = (matrix**2).sum(1) * 2 / columns
    return int((matrix[0] == 0).sum()) * 2 == columns and float((length - 1).abs().max()) < 1e-3


def _sparse(tensor: Tensor) -> bool:
    """Whether all columns have the same number of zeros, as `torch.nn.init.sparse_` leaves."""
    if tensor.ndim != 2:
        return False
    zero = whole(tensor)[:, :_PART] == 0
    zeros = zero[~zero.all(1)].sum(0)  # a padding row is zero in every column, too
    return len(zeros) > 1 and bool((zeros == zeros[0]).all()) and int(zeros[0]) > 0


def _top_singular_value(matrix: Tensor) -> float:
    """By power iteration: never above the true value, and a spike beyond the bulk shows at once."""
    vector = torch.ones(matrix.shape[1]) + torch.arange(matrix.shape[1]) % 7
    for _ in range(_ITERATIONS):
        vector = matrix.T @ (matrix @ vector)
        vector /= torch.linalg.vector_norm(vector)
    return float(torch.linalg.vector_norm(matrix @ vector))
