"""What every doctest may use without importing it."""

import pytest
import torch
from torch import nn

from lightning_init import ParamInfo, Role, Usage


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace.update(torch=torch, nn=nn, ParamInfo=ParamInfo, Role=Role, Usage=Usage)
