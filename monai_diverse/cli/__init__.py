"""The command line: `monai-diverse demo | train | grow | inspect | verify | audit`."""

from monai_diverse.cli.main import main, run

__all__ = ["main", "run"]
