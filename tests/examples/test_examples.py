"""Every script in examples/ runs: it is what users copy."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("digits*.yaml"))
LIBRARIES = ("digits.py", "__init__.py")  # imported by the others
COMMANDS = ("train.py", "own_cli.py")  # take arguments, tested elsewhere
SCRIPTS = [
    path
    for path in sorted((ROOT / "examples").glob("*.py"))
    if path.name not in (*LIBRARIES, *COMMANDS)
]

pytestmark = pytest.mark.slow


def run(folder: Path, *arguments: object) -> str:
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=240)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, text
    return text


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs(tmp_path, path):
    run(tmp_path, path)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_trains(tmp_path, config):
    run(tmp_path, "-m", "examples.train", "fit", f"--config={config}", "--trainer.max_steps=5")
    assert list(tmp_path.rglob("*.ckpt")) or list(tmp_path.rglob("config.yaml"))


def test_the_callback_is_one_option_away(tmp_path):
    config = ROOT / "configs" / "digits.yaml"
    callback = "--trainer.callbacks+=lightning_init.InitCallback"
    command = ("-m", "examples.train", "fit", f"--config={config}", "--trainer.max_steps=5")
    text = run(tmp_path, *command, callback, "--trainer.callbacks.strategy=orthogonal")
    [init] = tmp_path.rglob("init.json")
    data = json.loads(init.read_text())
    assert data["spec"] == {"strategy": "orthogonal"}
    assert data["seed"] == 1
    assert "lightning_init: orthogonal, seed 1" in text
