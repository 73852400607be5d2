"""The direction of the arrows between the rooms, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_init

PACKAGE = Path(lightning_init.__file__).parent
BELOW = {
    "architecture": set(),
    "strategies": {"architecture"},
    "health": {"architecture"},
    "callbacks": {"architecture", "strategies", "health"},
    "search": {"architecture", "strategies", "health", "callbacks"},
    "ensemble": {"architecture", "strategies", "health", "callbacks", "search"},
    "cli": {"architecture", "strategies", "health", "callbacks", "search", "ensemble"},
}
CORE = ("architecture", "strategies", "health")
FILES = [p for room in BELOW for p in sorted((PACKAGE / room).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_every_folder_is_a_room_with_a_place_in_the_order():
    folders = {p.parent.name for p in PACKAGE.glob("*/*.py")}
    assert folders <= set(BELOW)
    assert {"architecture", "strategies"} <= folders


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_only_rooms_below(path):
    room = path.relative_to(PACKAGE).parts[0]
    ours = [name.split(".") for name in imported(path) if name.startswith("lightning_init.")]
    rooms = {parts[1] for parts in ours} & set(BELOW)
    assert rooms <= BELOW[room] | {room}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_imports_the_public_names_from_inside(path):
    """`from lightning_init import x` at the top of a file would be a circle that lazily works."""
    public = {f"lightning_init.{name}" for name in lightning_init.__all__}
    assert not imported(path) & public


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.relative_to(PACKAGE).parts[0] in CORE], ids=lambda p: p.stem
)
def test_the_core_imports_torch_and_the_standard_library_only(path):
    allowed = {"torch", "lightning_init", "__future__", *sys.stdlib_module_names}
    if path.relative_to(PACKAGE).as_posix() == "strategies/spec.py":
        allowed.add("yaml")
    assert {name.split(".")[0] for name in imported(path)} <= allowed


def test_the_core_runs_without_lightning_and_optuna():
    names = [n for n, home in lightning_init._HOMES.items() if home.split(".")[0] in CORE]
    code = (
        "import sys, lightning_init\n"
        f"for name in {names}: getattr(lightning_init, name)\n"
        "import torch\n"
        "lightning_init.initialize_(torch.nn.Linear(3, 2), 'kaiming_normal', seed=0)\n"
        "heavy = ('lightning', 'pytorch_lightning', 'lightning_fabric', 'optuna', 'torchmetrics',"
        " 'scipy', 'plotly', 'rich', 'jsonargparse')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"
    assert {"make_plan", "initialize_"} <= set(names)


def test_importing_the_package_loads_nothing():
    code = "import sys, lightning_init; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
