import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCHEMES = (ROOT / "docs" / "schemes.md").read_text(encoding="utf-8")


def snippets(text):
    return re.findall(r"<!-- snippet -->\n```python\n(.*?)```", text, re.DOTALL)


SNIPPETS = [*snippets(README), *snippets(SCHEMES)]
NAMES = [
    "trainer",
    "health",
    "plain",
    "strategy",
    "fixup",
    "warm_start",
    "chain",
    "prior_head",
    "lsuv",
]


def test_the_readme_has_its_commands_where_ci_looks():
    for mark, needed in (("search", "lightning-init search"), ("tests", "pytest")):
        block = re.search(rf"^<!-- {mark} -->\n```bash\n(.*?)```", README, re.DOTALL | re.MULTILINE)
        assert block is not None
        assert needed in block[1]
        assert "-c constraints.txt" in block[1]


def test_there_are_snippets():
    assert len(SNIPPETS) == len(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("code", SNIPPETS, ids=NAMES)
def test_snippets_run(code, tmp_path):
    script = tmp_path / "snippet.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_links_point_to_files():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_files_fit_in_one_reading():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "lightning_init").rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 300
    }
    assert not long
