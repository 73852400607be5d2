"""Tables of positions for longer or shorter inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_init.architecture.params import ParamInfo, Role


def resized(info: ParamInfo, donor: Tensor) -> Tensor:
    """A table of positions with as many positions as the model has.

    A table that is looked up keeps its first rows, since a position keeps its number; where the
    model has more, and where it is added whole, it is interpolated: as a square of patches with up
    to 2 tokens before it if both are, else along the line.

    Example:
        >>> info = ParamInfo(("pos",), (1, 3, 1), Role.POSITION)
        >>> resized(info, torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).view(1, 5, 1)).flatten().tolist()
        [0.0, 2.0, 4.0]
    """
    at = len(info.shape) - 2
    if info.role is not Role.POSITION or at < 0 or donor.shape[at] == info.shape[at]:
        return donor
    old, new = int(donor.shape[at]), info.shape[at]
    if info.layer == "Embedding" and new < old:
        return donor.narrow(at, 0, new)
    flat = donor.float().reshape(-1, old, donor.shape[-1]).mT  # lines of positions
    for tokens in (0, 1, 2) if info.layer != "Embedding" else ():
        side, own = round((old - tokens) ** 0.5), round((new - tokens) ** 0.5)
        if side > 1 and own > 1 and (side**2, own**2) == (old - tokens, new - tokens):
            grid = flat[..., tokens:].reshape(*flat.shape[:-1], side, side)
            grid = F.interpolate(grid, (own, own), mode="bicubic", align_corners=False).flatten(-2)
            flat = torch.cat([flat[..., :tokens], grid], -1)
            break
    else:
        flat = F.interpolate(flat, new, mode="linear", align_corners=True)
    return flat.mT.reshape(*donor.shape[:at], new, donor.shape[-1]).to(donor.dtype)
