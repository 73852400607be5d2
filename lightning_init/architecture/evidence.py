"""What was seen of a parameter, in words."""

from __future__ import annotations

from lightning_init.architecture.params import ParamInfo, Role


def evidence(info: ParamInfo, why: str = "") -> str:
    """One line on how a parameter is used, as a plan prints it.

    Args:
        info: With its usage.
        why: What decided its role, if that is not obvious.

    Example:
        >>> from lightning_init.architecture.params import Usage
        >>> usage = Usage(ends_branch=True, branch=2, num_branches=12)
        >>> evidence(ParamInfo(("w",), (2, 2), Role.WEIGHT, usage=usage))
        'ends branch 3 of 12: added to the skip path'
    """
    usage, said = info.usage, [why] if why else []
    if usage is None or info.role is Role.BIAS:  # it shares the fate of its matrix
        return why
    matrix = info.role in (Role.WEIGHT, Role.RECURRENT)
    if usage.attention:
        heads = f"{usage.num_heads} head" + "s" * (usage.num_heads != 1)
        said.append(f"{usage.attention} of {heads}")
    elif info.parts:
        said.append(f"{len(info.parts)} matrices in one")
    if usage.ends_branch and info.role is not Role.BRANCH_SCALE:
        where = f"branch {usage.branch + 1} of {usage.num_branches}"
        said.append(f"ends {where}: added to the skip path" if matrix else f"at the end of {where}")
    if usage.is_output:
        said.append("output: no layer follows")
    if matrix and usage.nonlinearity != "linear":
        said.append(f"before {usage.nonlinearity}")
    if usage.calls > 1 and matrix:
        said.append(f"used {usage.calls} times")
    return ", ".join(said)
