"""Changes of a model's structure that some schemes need; called where the model is built.

`remove_norms_` takes norm layers out, `add_branch_scales_` puts learned scalars and vectors into
residual branches. Nothing here runs unless a user calls it. What is added are parameters of the
modules that compute the branches and a hook on each: the names of all other weights stay, and the
model can be copied, pickled, compiled, saved and loaded as before (call it in `__init__`, so that
the parameters exist before a checkpoint is loaded).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch import Tensor, nn

from lightning_init.architecture.analyze import analyze
from lightning_init.architecture.arguments import unknown
from lightning_init.architecture.hosts import Host, Hosts, branch_hosts, channels_of
from lightning_init.architecture.judge import judge
from lightning_init.architecture.layers import BRANCH_SCALE
from lightning_init.architecture.names import canonical, unwrap
from lightning_init.architecture.params import Architecture
from lightning_init.architecture.watched import norm_layers
from lightning_init.strategies.branch_scales import VECTORS, add_biases_, scale_branches_
from lightning_init.strategies.needs import FORWARD

Scheme = Literal["fixup", "skipinit", "rezero", "layerscale", "deepnorm", "admin"]
_UNTOUCHED = "Nothing has been changed"


def remove_norms_(model: nn.Module, names: str | Sequence[str] | None = None) -> list[str]:
    """Replace norm layers by `nn.Identity`, for schemes that train without (Fixup, T-Fixup).

    Norms are PyTorch's, and modules of other libraries or your own whose class is called so
    (`LlamaRMSNorm`, `LayerNorm2d`), others by `names`; what has matrices inside (a block called
    `PreNorm`) is none. A convolution in front of a BatchNorm often has no bias of its own: it gets none here, Fixup's scalar biases
    (`add_branch_scales_`) take its place. An `nn.TransformerEncoderLayer` without norms no longer
    takes its fused path in evaluation, which computes them. Code that reads a norm's own weight
    (Mamba of transformers) fails without it: leave such norms out by `names`.

    Args:
        model: Any module; changed in place.
        names: Glob patterns on the names of the norms to replace; None for all.

    Returns:
        The names of the replaced modules.

    Raises:
        ValueError: If a pattern matches no norm, or a norm is trained and not named, takes more
            than one input, carries a branch scale, or is the model itself.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        >>> remove_norms_(net)
        ['1']
        >>> net[1]
        Identity()
    """
    model = unwrap(model)
    found = norm_layers(model, [names] if isinstance(names, str) else names or ())
    chosen = {name: found[name] for name in _matching("norm", names, found)}
    if "" in chosen:
        raise ValueError(f"the model is itself a norm, {type(model).__name__}. {_UNTOUCHED}")
    if not chosen:
        raise ValueError(
            "the model has no norm layers to remove; norms of your own whose class is not called "
            f"so are found by `names`. {_UNTOUCHED}"
        )
    for name, norm in chosen.items():
        if norm._parameters.get(BRANCH_SCALE) is not None:
            raise ValueError(
                f"{name} carries a branch scale: call remove_norms_ before add_branch_scales_. "
                f"{_UNTOUCHED}"
            )
        if _inputs(norm) != 1:
            raise ValueError(
                f"{name} ({type(norm).__name__}) takes more than one input, so that no identity "
                f"can stand for it: pass `names` that leave it out. {_UNTOUCHED}"
            )
    if names is None and (trained := _trained(model, chosen)):
        raise ValueError(
            f"{trained[0]}{_more(trained)} is trained: without it the weights around it lose their "
            f"meaning. Pass names={trained[0]!r} (or a pattern) if you mean it. {_UNTOUCHED}"
        )
    gone = {id(norm) for norm in chosen.values()}
    for parent in list(model.modules()):
        for key, child in parent._modules.items():  # a shared norm has several names
            if id(child) in gone:
                parent._modules[key] = nn.Identity().train(model.training)
    _leave_fast_path(model, chosen)
    return list(chosen)


def add_branch_scales_(
    model: nn.Module,
    scheme: Scheme,
    *,
    forward: Callable[[], object] | None = None,
    names: str | Sequence[str] | None = None,
    value: float | None = None,
    per_layer: bool = False,
) -> list[str]:
    """Multiply each residual branch by a parameter of its own: x + s * f(x), s as the paper says.

    The parameter is called `branch_scale` and belongs to the module whose result ends the branch
    (its last layer, or the norm behind it). By scheme it is

    - `fixup`: a scalar 1; besides, scalar biases 0 before each weight layer of the branches
      (`branch_bias_in`) and after it (`branch_bias_out`), as the reference places them: bias,
      conv, bias, relu, bias, conv, scale, bias. The reference adds a block's first bias to the
      input of its projection shortcut, too, and has one at the stem and one at the head, whose
      layers usually have biases of their own; here shortcuts, stem and head get none. Within an
      `nn.MultiheadAttention` there are none.
    - `skipinit`, `rezero`: a scalar 0.
    - `layerscale`: a number per channel: 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 beyond.
    - `deepnorm`: the constant 1/alpha, not trained. LN(alpha x + f) = LN(x + f / alpha) up to the
      norm's epsilon, so the branch is divided instead of the skip path multiplied. alpha is
      (2N)^(1/4) with N layers; with an encoder of N and a decoder of M layers
      0.81 (N^4 M)^(1/16) in the encoder and (3M)^(1/4) in the decoder.
    - `admin`: a number per channel, 1 until the strategy `admin` has seen a batch. It is 1/omega,
      which as above is the paper's LN(omega x + f) as long as all its numbers are equal, as at the
      start; once trained apart, they scale the channels of the branch, not of the skip path.

    Args:
        model: Any module; changed in place.
        scheme: Whose scales.
        forward: A call without arguments that runs the model once; it shows the branches. The
            model is left as it was, its random numbers too.
        names: Glob patterns on the names of the modules that end branches: a selection of what
            `forward` shows or, without it, exactly these modules.
        value: Another start of `branch_scale` than the scheme's.
        per_layer: One parameter for all branches of a layer (attention and feed-forward), as in
            ReZero's code.

    Returns:
        The names of the new parameters.

    Raises:
        ValueError: If the scheme is unknown, the model has no branches or has scales already, a
            pattern matches nothing, or `deepnorm` or `admin` meet a model that is not Post-LN.

    References:
        Zhang, Dauphin & Ma (2019), section 3, https://arxiv.org/abs/1901.09321;
        De & Smith (2020), https://arxiv.org/abs/2002.10444;
        Bachlechner et al. (2020), eq. 4, https://arxiv.org/abs/2003.04887;
        Touvron et al. (2021), section 2, https://arxiv.org/abs/2103.17239;
        Wang et al. (2022), figure 2, https://arxiv.org/abs/2203.00555;
        Liu et al. (2020), section 4, https://arxiv.org/abs/2004.08249

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> add_branch_scales_(layer, "rezero", forward=lambda: layer(torch.ones(1, 4, 8)))
        ['self_attn.branch_scale', 'linear2.branch_scale']
    """
    model = unwrap(model)
    if scheme not in get_args(Scheme):
        raise ValueError(f"{unknown('scheme', str(scheme), get_args(Scheme))}. {_UNTOUCHED}")
    for name, module in model.named_modules():
        if module._parameters.get(BRANCH_SCALE) is not None:
            raise ValueError(f"{name or 'the model'} has a branch scale already. {_UNTOUCHED}")
    ends: list[Host]
    layers: tuple[Host, ...] = ()
    seen: Architecture | None = None
    if forward is None:
        ends = _named_hosts(model, scheme, names, value, per_layer)
    else:
        found = branch_hosts(model, forward, layers=scheme == "fixup")
        _check(scheme, found)
        by_name = {host.name: host for host in found.ends}
        ends = [by_name[name] for name in _matching("end of a branch", names, by_name)]
        chosen = {host.branch for host in ends}
        layers = tuple(host for host in found.layers if host.branch in chosen)
        seen = found.architecture
    before = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    scale_branches_(ends, scheme, seen, value, per_layer)
    for host in layers:
        add_biases_(host)
    _leave_fast_path(model, {host.name: host.module for host in (*ends, *layers)})
    after = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return [canonical(name) for name in after if name not in before]


def _check(scheme: str, found: Hosts) -> None:
    """Make sure that a scheme can serve the branches that were seen.

    Raises:
        ValueError: If there are none, or the scheme wants norms behind them.
    """
    if not found.ends:
        raise ValueError(
            f"{scheme} needs residual branches, but the forward pass shows none. {_UNTOUCHED}"
        )
    if scheme in ("deepnorm", "admin") and not found.post_norm:
        raise ValueError(
            f"{scheme} is for Post-LN, LN(x + f(x)), but here the sum x + f(x) goes on without a "
            f"norm. {_UNTOUCHED}"
        )


def _matching(kind: str, patterns: str | Sequence[str] | None, names: Iterable[str]) -> list[str]:
    """The names that patterns match, all without patterns.

    Raises:
        ValueError: If a pattern matches nothing.
    """
    listed = list(names)
    if patterns is None:
        return listed
    keys = [patterns] if isinstance(patterns, str) else list(patterns)
    for key in keys:
        if not any(fnmatchcase(name, key) for name in listed):
            raise ValueError(f"no {kind} matches: {unknown('name', key, listed)}. {_UNTOUCHED}")
    return [name for name in listed if any(fnmatchcase(name, key) for key in keys)]


def _inputs(norm: nn.Module) -> int:
    """How many inputs a norm takes at most; PyTorch's take one."""
    if type(norm).__module__.startswith("torch.nn."):
        return 1
    taken = inspect.signature(norm.forward).parameters.values()
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in taken)


def _trained(model: nn.Module, norms: dict[str, nn.Module]) -> list[str]:
    """The norms whose parameters or running statistics are trained or loaded."""
    infos = analyze(model).params
    verdicts = judge(model, infos)
    trained = {
        name
        for info in infos
        if verdicts[info.names].provenance == "pretrained"
        for name in info.names
    }
    return [
        name
        for name, norm in norms.items()
        if any(canonical(f"{name}.{own}") in trained for own, _ in norm.named_parameters())
        or any(_moved(own, buffer) for own, buffer in norm.named_buffers())
    ]


def _moved(name: str, buffer: Tensor) -> bool:
    """Whether a running statistic is not where its layer puts it."""
    starts = {"running_mean": 0.0, "running_var": 1.0}
    leaf = name.rpartition(".")[2]
    return leaf in starts and not buffer.is_meta and bool((buffer != starts[leaf]).any())


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _leave_fast_path(model: nn.Module, changed: dict[str, nn.Module]) -> None:
    """Fused encoder layers compute their parts themselves: norms and branches as they were."""
    ids = set(map(id, changed.values()))
    layers = set()
    for layer in model.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            touched = any(id(part) in ids for part in layer.modules())
            if touched or not hasattr(layer.norm1, "eps"):
                layer.activation_relu_or_gelu = 0
                layers.add(id(layer))
    for stack in model.modules():
        if isinstance(stack, nn.TransformerEncoder) and layers & set(map(id, stack.layers)):
            stack.use_nested_tensor = False


def _named_hosts(
    model: nn.Module,
    scheme: str,
    names: str | Sequence[str] | None,
    value: float | None,
    per_layer: bool,
) -> list[Host]:
    """The modules that a user names as ends of branches.

    Raises:
        ValueError: If the scheme needs to see the branches.
    """
    by_depth = scheme in ("layerscale", "deepnorm") and value is None
    if names is None or scheme == "fixup" or per_layer or by_depth:
        raise ValueError(
            f"{scheme} needs a forward pass to see the residual branches"
            f"{'' if names is None else ', not only where they end'}: {FORWARD}. {_UNTOUCHED}"
        )
    modules = dict(model.named_modules())
    hosts = []
    for name in _matching("module", names, modules):
        channels = channels_of(modules[name])
        if channels is None and scheme in VECTORS:
            raise ValueError(
                f"{name} is a {type(modules[name]).__name__}, whose number of channels is not "
                f"known without a forward pass: {FORWARD}. {_UNTOUCHED}"
            )
        hosts.append(Host(name, modules[name], -1, channels or (1,)))
    return hosts
