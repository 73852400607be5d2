"""A real browser without a network: what a page becomes, and what it complains about."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(
    PROGRAM is None, reason=f"no browser: none of {', '.join(NAMES)} is installed"
)


@dataclass(frozen=True)
class Opened:
    """A page after its scripts have run.

    Attributes:
        dom: Its HTML without the scripts.
        complaints: What stands on the browser's console.
    """

    dom: str
    complaints: list[str]

    @property
    def drawn(self) -> int:
        """Figures that plotly has drawn."""
        return self.dom.count('class="figure js-plotly-plot"')


def opened(path: Path, width: int = 1280) -> Opened:
    """Open a file, with every host name unknown."""
    with tempfile.TemporaryDirectory() as profile:
        arguments = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
            *("--disable-background-networking", "--disable-component-update", "--disable-quic"),
            "--host-resolver-rules=MAP * ~NOTFOUND",
            *(f"--user-data-dir={profile}", f"--window-size={width},3000"),
            *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=20000", "--dump-dom"),
        ]
        ran = subprocess.run(
            [str(PROGRAM), *arguments, path.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    dom = re.sub(r"<script.*?</script>", "", ran.stdout, flags=re.DOTALL)
    return Opened(dom, [line for line in ran.stderr.splitlines() if "CONSOLE" in line])
