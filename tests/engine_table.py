"""Runs every cell of the exactness matrix and writes docs/engines.md's table: `make engines`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from engine_cell import COLUMNS, LAUNCH_FILES, PRECISIONS, ROOT, Outcome, make_material, run_cell

PAGE = ROOT / "docs" / "engines.md"
BEGIN, END = "<!-- table: make engines -->", "<!-- end of the table -->"
PRECISION_NAMES = {"no": "fp32", "bf16": "bf16"}


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    outcomes: dict[tuple[str, str, str], Outcome] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_material(folder)
        for engine in ("single", *LAUNCH_FILES):
            for column in COLUMNS:
                for precision in PRECISIONS:
                    outcome = run_cell(folder, engine, column, precision)
                    outcomes[engine, column, precision] = outcome
                    print(f"{engine}, {column}, {PRECISION_NAMES[precision]}: {outcome}", flush=True)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(outcomes)}\n\n{END}{after}", encoding="utf-8")
    failed = [key for key, outcome in outcomes.items() if not (outcome.equal(key[2]) and outcome.resumed_exactly)]
    sys.exit(f"not exact: {failed}" if failed else 0)


def table(outcomes: dict[tuple[str, str, str], Outcome]) -> str:
    columns = [(column, precision) for column in COLUMNS for precision in PRECISIONS]
    names = " | ".join(f"{column}, {PRECISION_NAMES[precision]}" for column, precision in columns)
    lines = [f"| engine | {names} |", "|---" * (len(columns) + 1) + "|"]
    for engine in ("single", *LAUNCH_FILES):
        cells = [cell(outcomes[engine, column, precision], precision) for column, precision in columns]
        lines.append(f"| {engine} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(outcome: Outcome, precision: str) -> str:
    measured = (outcome.gradients, outcome.sgd_weights, outcome.adam_weights)
    shown = "equal" if outcome.equal(precision) else "**not equal**"
    resumed = "bit for bit" if outcome.resumed_exactly else f"to {outcome.resumed_weights:.0e}"
    return f"{shown}: {', '.join(f'{value:.0e}' if value else '0' for value in measured)}; resumes {resumed}"


if __name__ == "__main__":
    main()
