"""The user's own LightningCLI: found by name or file, and how it is called, without running it.

`--cli package.module:function`, `--cli train.py:main`, `--cli train.py` (what stands under
`if __name__ == "__main__":` is run) or a subclass of LightningCLI: whatever leads to the call
`MyCLI(Model, Data, ...)` is run up to that call and no further.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning.pytorch.cli import LightningCLI

from lightning_init.architecture.arguments import unknown
from lightning_init.search.mistakes import ConfigError, one_line


@dataclass(frozen=True)
class Recipe:
    """How a LightningCLI is made: its class and what it is called with; can be pickled.

    Attributes:
        kind: LightningCLI or the user's subclass.
        args: The call's positional arguments.
        kwargs: The call's keyword arguments.
    """

    kind: type[LightningCLI] = LightningCLI
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_own(self) -> bool:
        """Whether it is the user's rather than Lightning's own without arguments."""
        return self != PLAIN


PLAIN = Recipe(kwargs={"run": False})


class _Found(BaseException):
    """Ends the user's function at the call that was looked for; no `except Exception` keeps it."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe


_asked = False


def offer(recipe: Recipe) -> None:
    """End here if somebody wants to know how a LightningCLI is called."""
    if _asked:
        raise _Found(recipe)


def for_workers(recipe: Recipe) -> None:
    """Make sure that worker processes can make it too, by importing the script that is running.

    Raises:
        ConfigError: If they cannot; what to change, or to run without workers.
    """
    name = recipe.kind.__name__
    out = "or pass --workers 0"
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if recipe.kind.__module__ == "__main__" and (path is None or not Path(path).is_file()):
        raise ConfigError(f"worker processes cannot import {name}: put it into a file, {out}")
    if path is not None and (line := _line_of_script(path)) is not None:
        raise ConfigError(
            f"worker processes would run {Path(path).name} again when they import it: put line "
            f'{line} under `if __name__ == "__main__":`, {out}'
        )
    try:
        pickle.dumps(recipe)
    except Exception as error:
        raise ConfigError(
            f"worker processes cannot be told how {name} is made ({one_line(error)}): define "
            f"that at the top of a module, {out}"
        ) from error


def _line_of_script(path: str) -> int | None:
    """The line of the running script that made the LightningCLI, if nothing guards it."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__":
            break
        frame = frame.f_back
    if frame is None or not Path(path).is_file() or frame.f_code.co_filename != path:
        return None
    for node in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        if node.lineno <= frame.f_lineno <= (node.end_lineno or node.lineno):
            return None if _is_guard(node) else frame.f_lineno
    return None


def _is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def _new(cls: type[LightningCLI], *args: Any, **kwargs: Any) -> LightningCLI:
    offer(Recipe(cls, args, kwargs))
    return object.__new__(cls)


def recipe_from(text: str) -> Recipe:
    """How the user's code makes its LightningCLI.

    Args:
        text: `package.module:function`, `file.py:function`, a module or file with
            `if __name__ == "__main__":`; in place of a function also a LightningCLI class.

    Raises:
        ConfigError: If there is no such thing, it fails, or it makes no LightningCLI.
    """
    where, _, name = text.rpartition(":")
    if not where or not name.isidentifier():
        where, name = text, ""

    def act() -> None:
        module = _module(where)
        if name:
            _callable(module, name)()
        else:
            _as_script(module)

    return _caught(text, act)


def _caught(text: str, act: Callable[[], None]) -> Recipe:
    global _asked
    # Python cannot take a `__new__` away again: it stays, and does nothing while none asks.
    LightningCLI.__new__ = _new  # type: ignore[assignment,method-assign]
    argv, sys.argv = sys.argv, [text.partition(":")[0]]
    _asked = True
    try:
        act()
    except _Found as found:
        return found.recipe
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigError(f"--cli {text} failed before it made a LightningCLI: {said}") from error
    finally:
        _asked, sys.argv = False, argv
    raise ConfigError(
        f"--cli {text} ran to its end without making a LightningCLI: name the function that "
        "calls it, as in --cli train.py:main"
    )


def _module(where: str) -> ModuleType:
    path = Path(where)
    if path.suffix == ".py" or path.exists():
        if not path.is_file():
            there = [str(near) for near in sorted(path.parent.glob("*.py"))]
            raise ConfigError(f"--cli: {unknown('file', where, there)}")
        return _from_file(path.resolve())
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not (where == error.name or where.startswith(f"{error.name}.")):
            raise
        there = [near.stem for near in sorted(Path().glob("*.py"))]
        raise ConfigError(f"--cli: {unknown('module', where, there)}") from None


def _from_file(path: Path) -> ModuleType:
    """The file as `python file.py` sees it: its folder is searched first, its name is its stem."""
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = path.stem
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path:
        return importlib.import_module(name)
    name = f"own_cli_{''.join(c if c.isalnum() else '_' for c in name)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _callable(module: ModuleType, name: str) -> Callable[[], object]:
    found: Callable[[], object] | None = getattr(module, name, None)
    if not callable(found):
        own = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(f"--cli: {unknown(f'function in {module.__name__}', name, own)}")
    if not inspect.isclass(found):
        empty, various = inspect.Parameter.empty, (inspect.Parameter.VAR_POSITIONAL,)
        needed = [
            p.name
            for p in inspect.signature(found).parameters.values()
            if p.default is empty and p.kind not in (*various, inspect.Parameter.VAR_KEYWORD)
        ]
        if needed:
            raise ConfigError(
                f"--cli: {name} must be callable without arguments, but it needs "
                f"{', '.join(needed)}"
            )
    return found


def _as_script(module: ModuleType) -> None:
    """Run what the module does only as a script."""
    path = inspect.getsourcefile(module)
    assert path is not None
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.If) and _is_guard(node):
            code = compile(ast.Module(node.body, []), path, "exec")
            exec(code, vars(module))
