"""The command line: `monai-diverse demo | train | grow | inspect | verify`."""

from monai_diverse.cli.main import main, run

__all__ = ["main", "run"]
