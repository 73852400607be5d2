"""The command line of every LightningCLI user: `python -m examples.train fit --config ...`."""

from lightning.pytorch.cli import LightningCLI


def main() -> None:
    """Fit, validate or test what a configuration names."""
    LightningCLI(save_config_kwargs={"overwrite": True})


if __name__ == "__main__":
    main()
