"""Weights from a file: of the same model, of a similar one, of a larger one.

The file is read (`donor`), its tensors are matched by name (`matching`), made to fit (`slicing`),
and become part of the plan (`loaded`); what has no donor stays as other schemes decide it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import nn

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.params import Architecture
from lightning_init.strategies.chain import modifier
from lightning_init.strategies.fitting import Fitting, Mismatch, read
from lightning_init.strategies.initializers import Initializer
from lightning_init.strategies.neurons import Select
from lightning_init.strategies.registry import Strategy, strategy
from lightning_init.strategies.slicing import Rescale


@strategy(search=False, needs=("donor",))
def warm_start(
    path: str = "",
    entry: str = "",
    rename: str = "",
    mismatch: Mismatch = "slice",
    select: Select = "importance",
    rescale: Rescale = "norm",
    coverage: Annotated[float, Range(0.0, 1.0)] = 0.3,
    heads: Annotated[int, Range(0, 1024)] = 0,
    new_branches: Literal["zero", "drawn"] = "zero",
) -> Strategy:
    """W = the weights of a checkpoint, matched by name and sliced consistently where it is wider.

    Tensors are matched by name, after the parts that wrappers leave in names are taken off and one
    prefix is exchanged for another where that matches more. What has no donor stays as the scheme
    below decides it, `auto` if this one is alone; so does an output layer with other classes.
    Where shapes differ, neurons are chosen once for all tensors that share them, those of largest
    |incoming weights| * |outgoing weights|, the same number from each head of attention; what
    remains of a layer's inputs is scaled to the norm of all, on average sqrt(n_donor / n_model).
    A narrower donor goes into the first neurons, which take nothing from the new ones, so that a
    network without LayerNorm computes what the donor does; new neurons are drawn. Words of a
    vocabulary keep their numbers, positions are interpolated.

    Running statistics of norm layers come along with the weights, no other buffers do. `scale`
    does not change what is loaded. Files are read without running anything that is in them.

    Args:
        path: A `.ckpt` of Lightning, `.pt`, `.pth`, `.bin`, `.safetensors`, or a folder of Hugging
            Face or of a Lightning run.
        entry: The entry of the file that has the weights, for example `state_dict_ema`; `""` for
            the usual one.
        rename: `old=new` pairs, separated by commas: parts of names in the file and what they are
            called in the model.
        mismatch: For tensors of other shapes: `slice`, `skip` (as the scheme below) or `error`.
        select: `importance`, or `even`: evenly spaced.
        rescale: `norm`, `fan_in` (exactly sqrt(n_donor / n_model)) or `none`.
        coverage: The least share of the model's parameters that must have a donor, 0 to 1; a
            tensor that grows counts whole.
        heads: Heads of attention in the donor; 0 takes the `config.json` beside the weights, else
            heads as wide as the model's where that is usual and fits, else as many.
        new_branches: Residual branches of a deeper model that the donor lacks: `zero` ends them
            with 0, `drawn` leaves them to the scheme below.

    References:
        Chen, Goodfellow & Shlens (2016), Net2Net, https://arxiv.org/abs/1511.05641, for growing
        without changing the function (here by columns of zeros instead of copies).

    Example:
        >>> import tempfile, torch
        >>> from lightning_init import InitSpec, make_plan
        >>> old, new = nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(old.state_dict(), f"{folder}/old.pt")
        ...     plan = make_plan(new, InitSpec("warm_start", {"path": f"{folder}/old.pt"}))
        >>> print(plan["0.weight"], "|", plan["0.weight"].reason, "|", plan["2.weight"])
        loaded | from old.pt: weight | normal, std 0.6325
    """

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:
        donor = read("warm_start", path, entry)
        fitting = Fitting("warm_start", donor, model, architecture, rename, heads)
        fitting.fit(mismatch, select, rescale)
        return modifier(
            fitting.initializer(coverage, zero=new_branches == "zero"),
            notes=fitting.notes(),
            buffers=fitting.buffers(),
        )

    return modifier(_same)._replace(prepare=prepare)


@strategy(search=False, needs=("donor",))
def weight_selection(
    path: str = "",
    entry: str = "",
    rename: str = "",
    heads: Annotated[int, Range(0, 1024)] = 0,
) -> Strategy:
    """W = W_donor[::n_donor / n_model]: evenly spaced neurons of a larger model of the same family.

    The first layers, the same neurons wherever a size occurs: every k-th where sizes divide,
    `round(linspace(0, n_donor - 1, n_model))` otherwise; nothing is rescaled, and output layers
    are left to the scheme below. Unlike the authors' script, which slices a fused q|k|v as one
    axis, each part and each head of attention is sliced by itself, and running statistics come
    along.

    Args:
        path: As in `warm_start`.
        entry: As in `warm_start`.
        rename: As in `warm_start`.
        heads: As in `warm_start`.

    References:
        Xu et al. (2024), Initializing Models with Larger Ones, section 3, ICLR,
        https://arxiv.org/abs/2311.18823

    Example:
        >>> import tempfile, torch
        >>> from lightning_init import InitSpec, initialize_
        >>> def net(width):
        ...     return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))
        >>> large, small = net(8), net(4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(large.state_dict(), f"{folder}/large.pt")
        ...     spec = InitSpec("weight_selection", {"path": f"{folder}/large.pt"})
        ...     plan = initialize_(small, spec, seed=0)
        >>> bool((small[0].weight == large[0].weight[::2]).all())
        True
    """

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:
        donor = read("weight_selection", path, entry)
        fitting = Fitting("weight_selection", donor, model, architecture, rename, heads)
        fitting.leave_heads()
        fitting.fit("slice", "even", "none", grow=False)
        return modifier(
            fitting.initializer(0.3, zero=False), notes=fitting.notes(), buffers=fitting.buffers()
        )

    return modifier(_same)._replace(prepare=prepare)


def _same(below: Initializer) -> Initializer:
    """Nothing is known before the file is read."""
    return below
