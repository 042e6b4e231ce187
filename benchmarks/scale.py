"""From a laptop to a cluster: what grows with references, candidates, workers, bank size and volume, and how fast.

python benchmarks/scale.py [--quick] [--json] [--only PART]...

Runs scale_references.py, scale_screen.py, scale_candidates.py, scale_grow.py, scale_bank.py and scale_volumes.py one after another, each in a
process of its own, and gathers their bars in results/scale.json; with --only, beside what the other parts found before. Each can be run alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from monai_diverse.storage import write_json

HERE = Path(__file__).parent
RESULT = HERE / "results" / "scale.json"
PARTS = ("references", "screen", "candidates", "grow", "bank", "volumes")


def run(part: str, quick: bool) -> dict[str, Any]:
    """One part's JSON."""
    command = [sys.executable, str(HERE / f"scale_{part}.py"), "--json", *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # 1: a bar that does not hold
    if done.returncode not in (0, 1) or not done.stdout.strip():
        raise SystemExit(f"{command[1]} ended with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="each part's quick form; nothing is written to results")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; may be repeated")
    chosen = parser.parse_args()
    known = json.loads(RESULT.read_text())["results"] if RESULT.exists() and chosen.only and not chosen.quick else {}
    asked = [part for part in PARTS if not chosen.only or part in chosen.only]
    found = {part: run(part, chosen.quick) if part in asked else known[part] for part in PARTS if part in asked or part in known}
    bars = {f"{part}: {name}": bar for part, result in found.items() for name, bar in result.get("bars", {}).items()}
    result = {"bars": bars, "results": found}  # each part says where it ran
    if not chosen.quick:
        write_json(RESULT, result)
    print(json.dumps(result) if chosen.json else json.dumps(bars, indent=1))
    return 0 if all(bar["holds"] for bar in bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
