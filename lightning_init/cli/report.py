"""`lightning-init report`: the page of a run again, also of one that still goes on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from lightning_init.cli.flags import add_flags
from lightning_init.cli.options import parse
from lightning_init.search.page import page
from lightning_init.search.rebuilt import rebuilt


def run(arguments: Sequence[str]) -> int:
    """Write the page and say what it holds.

    Args:
        arguments: See `lightning-init report --help`.

    Returns:
        0.
    """
    parser = ArgumentParser(prog="lightning-init report", exit_on_error=False)
    add_flags(parser, "report")
    options = parse(parser, arguments)
    if not options.run:
        raise ValueError("no run: pass its folder, lightning-init report lightning_init_runs/NAME")
    folder = Path(options.run)
    out = Path(options.out) if options.out else folder / "report.html"
    with rebuilt(folder, options.storage) as seen:
        _writable(out)
        text = page(seen, folder.resolve().name)
    # The name is there or not: who reads the page while it is written sees the one before.
    half = out.with_name(f".{out.name}.{os.getpid()}")
    half.write_text(text, encoding="utf-8")
    half.replace(out)
    print(seen.missing or (seen.result.verdict() if seen.result else ""))
    print(f"{out}: opens in a browser, needs no network")
    return 0


def _writable(out: Path) -> None:
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out must end in .html, but got {str(out)!r}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out: there is no folder {out.parent}")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ValueError(f"--out: {out} cannot be written: no permission")
