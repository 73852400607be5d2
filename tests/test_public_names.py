"""The public names: lazy table, `__all__`, `dir` and what a type checker sees are one list."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import lightning_init


def typed_names() -> dict[str, str]:
    """name -> module, from the `if TYPE_CHECKING:` block."""
    tree = ast.parse(Path(lightning_init.__file__).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "type checkers read `x as x` as public"
            found[alias.name] = node.module
    return found


@pytest.mark.parametrize("name", lightning_init.__all__)
def test_each_name_resolves_to_the_object_of_its_home(name):
    home = import_module(f"lightning_init.{lightning_init._HOMES[name]}")
    assert getattr(lightning_init, name) is getattr(home, name)
    assert lightning_init.__dict__[name] is getattr(home, name), "cached after first use"


def test_all_is_sorted_without_repetition():
    assert lightning_init.__all__ == sorted(set(lightning_init.__all__))


def test_dir_agrees():
    assert set(dir(lightning_init)) == {*lightning_init.__all__, "__version__"}


def test_type_checkers_see_the_same_table():
    homes = {name: f"lightning_init.{home}" for name, home in lightning_init._HOMES.items()}
    assert typed_names() == homes


def test_the_contract_of_the_core_is_public():
    promised = {"analyze", "make_plan", "apply_", "calibrate_", "initialize_", "recommend"}
    assert promised | {"InitSpec", "Strategy", "strategy", "Range"} <= set(lightning_init.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'make_plans'"):
        _ = lightning_init.make_plans
    assert not hasattr(lightning_init, "utils")


def test_the_version_is_that_of_the_distribution():
    pyproject = Path(lightning_init.__file__).parents[1] / "pyproject.toml"
    assert f'version = "{lightning_init.__version__}"' in pyproject.read_text(encoding="utf-8")
