"""What schemes need to know of a model, and the error that says which fact is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lightning_init.architecture.params import Architecture, ParamInfo, Role


class NotYetError(ValueError):
    """What is to be decided needs a forward pass, and none has been seen."""


class UnsuitableError(ValueError):
    """A scheme cannot serve a model; nothing has been changed.

    Attributes:
        nearest: The nearest scheme that applies.
    """

    nearest: str = "auto"


class Need(NamedTuple):
    """A fact of a model.

    Attributes:
        says: The fact, after "needs".
        holds: Whether a model has it.
        missing: What is so if it has not, after "but".
        do: What to do about it, `""` if only another scheme helps; `{scheme}` is its name.
    """

    says: str
    holds: Callable[[Architecture], bool]
    missing: str
    do: str = ""


def _has(*roles: Role) -> Callable[[Architecture], bool]:
    return lambda seen: any(info.role in roles for info in seen)


def _unknown_yet(seen: Architecture) -> bool:
    """What the description of a model does not tell is checked where it is used."""
    del seen
    return True


SCALED = ("fixup", "skipinit", "rezero", "layerscale", "deepnorm", "admin")
FORWARD = "pass forward=lambda: model(batch)"
NEEDS: dict[str, Need] = {
    "batch": Need("a batch", _unknown_yet, "there is none", FORWARD),
    "loss": Need("a batch with its loss", _unknown_yet, "there is none", FORWARD),
    "forward": Need("a forward pass", lambda seen: seen.traced, "none was seen", FORWARD),
    "branches": Need(
        "residual branches", lambda seen: seen.num_branches > 0, "the forward pass shows none"
    ),
    "attention": Need(
        "attention",
        lambda seen: any(info.usage and info.usage.attention for info in seen),
        "the forward pass shows none",
    ),
    "recurrence": Need(
        "recurrent layers",
        lambda seen: any(i.role is Role.RECURRENT or is_hidden(i) for i in seen),
        "the model has no hidden-to-hidden matrix to be seen (a cell that is written by hand shows "
        "it in a forward pass of 2 or more steps)",
    ),
    "sine": Need(
        "layers followed by a sine",
        lambda seen: any(info.activation == "sin" for info in seen),
        "the forward pass shows none",
    ),
    "labels": Need(
        "labels",
        lambda seen: any(info.answer for info in seen),
        "the forward pass computes no loss from labels and an output layer with a bias",
        "pass forward=lambda: loss(model(x), y)",
    ),
    "donor": Need("a file with weights", _unknown_yet, "none was named"),
    "masks": Need("pruning masks", _unknown_yet, "no tensor has one"),
    "branch scales": Need(
        "a learned scale in each residual branch",
        _has(Role.BRANCH_SCALE),
        "the branches have none",
        'call add_branch_scales_(model, "{scheme}", forward=...) where the model is built',
    ),
    "no norms": Need(
        "a model without norm layers",
        lambda seen: not any("norm" in info.traits for info in seen),
        "this one has some",
        "call remove_norms_(model) where the model is built",
    ),
}


def is_hidden(info: ParamInfo) -> bool:
    """Whether a matrix is hidden-to-hidden in a cell that is written by hand: square per gate.

    Example:
        >>> usage = Usage(recurs=True)
        >>> is_hidden(ParamInfo(("w",), (12, 4), Role.WEIGHT, usage=usage))
        True
    """
    usage = info.usage
    if usage is None or not usage.recurs or usage.within >= 0 or len(info.shape) != 2:
        return False
    rows, columns = info.shape[info.axis], info.shape[1 - info.axis]
    return info.role is Role.WEIGHT and columns > 0 and rows in (n * columns for n in (1, 2, 3, 4))


def check_needs(
    scheme: str, needs: tuple[str, ...], architecture: Architecture, nearest: str
) -> None:
    """Raise an error for the first fact that a model lacks.

    Raises:
        NotYetError: If only a forward pass could show it, and none was seen.
        UnsuitableError: If the model does not have it.
    """
    seen_only = {"branches", "attention", "labels", "sine"}
    for name in needs:
        need = NEEDS[name]
        if name in seen_only and not architecture.traced:
            name, need = "forward", NEEDS["forward"]
        if need.holds(architecture):
            continue
        text = f"{scheme} needs {need.says}, but {need.missing}: "
        if name == "forward":
            raise NotYetError(f"{text}{_do(need, scheme)}. Nothing has been changed")
        raise unsuitable(text + (f"{_do(need, scheme)}, or " if need.do else ""), nearest)


def _do(need: Need, scheme: str) -> str:
    """What to type; a scheme of the user's own has no branch scales of its name."""
    return need.do.replace('"{scheme}"', f'"{scheme}"' if scheme in SCALED else "...")


def holds(needs: tuple[str, ...], architecture: Architecture) -> bool:
    """Whether a model has all of the facts."""
    return all(NEEDS[name].holds(architecture) for name in needs)


def unsuitable(text: str, nearest: str) -> UnsuitableError:
    """The error for a scheme that cannot serve a model.

    Example:
        >>> unsuitable("fixup needs residual branches, but there are none: ", "kaiming_normal")
        UnsuitableError("fixup needs residual branches, but there are none: the nearest scheme \
that applies is 'kaiming_normal'. Nothing has been changed")
    """
    error = UnsuitableError(
        f"{text}the nearest scheme that applies is {nearest!r}. Nothing has been changed"
    )
    error.nearest = nearest
    return error


def check_wants(scheme: str, wants: tuple[str, ...], architecture: Architecture) -> tuple[str, ...]:
    """A sentence for each fact that a scheme would like a model to have."""
    return tuple(
        f"{scheme} wants {need.says}, but {need.missing}: {_do(need, scheme)}"
        for need in (NEEDS[name] for name in wants)
        if not need.holds(architecture)
    )
