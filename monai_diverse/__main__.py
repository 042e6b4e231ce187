"""`python -m monai_diverse`: the command line."""

from monai_diverse.cli import run

if __name__ == "__main__":
    run()
