"""A model's modules and tensors by what a listener needs to know of them, found once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.layers import describe, module_traits
from lightning_init.architecture.names import canonical, unwrap
from lightning_init.architecture.params import Role
from lightning_init.architecture.sharded import in_use, kind_of
from lightning_init.architecture.trails import CONSTANT, Trail
from lightning_init.architecture.watched import norm_layers, repeated_blocks, watched


@dataclass(frozen=True, slots=True)
class Place:
    """Where an output is read.

    Attributes:
        name: What its reading is called.
        module: The module.
        owner: The module's name.
        group: Layers of one group follow each other through the depth.
        is_layer: Whether it multiplies by weights of its own, as blocks do not.
        channels: Whether its units lie along dimension 1.
    """

    name: str
    module: nn.Module
    owner: str
    group: str
    is_layer: bool
    channels: bool = False

    @property
    def kind(self) -> str:
        """The module's class."""
        return kind_of(self.module).__name__


class Stage:
    """The places of a model where something is heard.

    Attributes:
        places: Modules with weights, and repeated blocks.
        raw: Products with bare parameters, by name: of the module if it owns one matrix, else of
            the parameter.
        rooms: Modules that run calls of their own, by name; a chain of modules has none.
        norms: Norm layers by name.
        owners: `id(parameter)` -> the trail of what is computed from it.
        constants: Buffers.
        rescaled: Whether norms between single layers set the scale anew.

    Example:
        >>> stage = Stage(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
        >>> [place.name for place in stage.places]
        ['0', '2']
    """

    def __init__(self, model: nn.Module) -> None:
        model = unwrap(model)
        blocks = repeated_blocks(model)
        block_ids = {id(block) for block in blocks}
        self.places: list[Place] = []
        self.raw: dict[str, Place] = {}
        self.owners: dict[int, Trail] = {}
        for name, module, group in watched(model):
            typed = _multiplies(module)
            channels = isinstance(module, nn.modules.conv._ConvNd)
            self.places.append(Place(name, module, name, group, typed, channels))
            if not typed and id(module) not in block_ids:
                self._bare(name, module, group)
        for name, module in model.named_modules():
            own = Trail(layer=canonical(name), learned=True) if _multiplies(module) else CONSTANT
            for parameter in module._parameters.values():
                if parameter is not None:
                    self.owners.setdefault(id(parameter), own)
        for key, parameter in in_use(model).items():
            if id(parameter) in self.owners:
                self.owners[key] = self.owners[id(parameter)]
        self.norms = [(canonical(name), norm) for name, norm in norm_layers(model).items()]
        norms = {id(norm) for _, norm in self.norms}
        inside = {id(part) for _, norm in self.norms for part in norm.modules()} - norms
        self.rooms = [
            (None if isinstance(module, nn.Sequential) else canonical(name), module)
            for name, module in model.named_modules()
            if id(module) in norms or (id(module) not in inside and _runs_calls(module))
        ]
        self.constants: list[Tensor] = list(model.buffers())
        # Blocks add to a stream; single layers with norm layers between have a scale of their own.
        self.rescaled = "norm" in module_traits(model) and not blocks

    def _bare(self, name: str, module: nn.Module, group: str) -> None:
        """Parameters that a module multiplies by in code of its own."""
        matrices = {
            key: parameter
            for key, parameter in module._parameters.items()
            if parameter is not None and not is_lazy(parameter) and parameter.ndim > 1
        }
        alone = len(matrices) == 1
        for key, parameter in matrices.items():
            called = name if alone else f"{name}.{key}".lstrip(".")
            place = Place(called, module, name, group if alone else "", True, parameter.ndim > 2)
            self.raw[called] = place
            self.owners[id(parameter)] = Trail(layer=called, learned=True)


def _multiplies(module: nn.Module) -> bool:
    """Whether a module is of a type that multiplies its input by a matrix of its own."""
    roles = (fact.role for fact in describe(module).values())
    return any(role in (Role.WEIGHT, Role.RECURRENT) for role in roles)


def _runs_calls(module: nn.Module) -> bool:
    """Whether a module may run modules, or calls of PyTorch that are no other module's."""
    ours = kind_of(module).__module__.startswith("torch.nn.")
    return not ours or (any(True for _ in module.children()))
