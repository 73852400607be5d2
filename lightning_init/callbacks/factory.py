"""What Lightning's entry points call for every Trainer: nothing, unless the environment asks for it.

Installing a package must not change how other people's models start. With `LIGHTNING_INIT=lsuv`
set, each Trainer gets an InitCallback without a change of the script; one that the user has listed
decides before it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_init.callbacks.init import InitCallback

VARIABLE = "LIGHTNING_INIT"


def from_environment() -> list[InitCallback]:
    """The InitCallback that `LIGHTNING_INIT` asks for, none where it is not set or empty.

    Its value is a strategy's name, or a `.yaml` file as `InitCallback.from_file` reads it.

    Raises:
        ValueError: If it is neither.

    Example:
        >>> from_environment()
        []
    """
    asked = os.environ.get(VARIABLE, "").strip()
    if not asked:
        return []
    from lightning_init.callbacks.init import InitCallback  # an import of torch: only if it is used

    is_file = asked.endswith((".yaml", ".yml"))
    try:
        found = InitCallback.from_file(asked) if is_file else InitCallback(asked)
    except (ValueError, FileNotFoundError) as error:
        hint = f"set {VARIABLE} to a strategy's name or a .yaml file, or unset it"
        raise ValueError(f"{VARIABLE}={asked}: {error}; {hint}") from None
    found.told_by = VARIABLE
    return [found]
