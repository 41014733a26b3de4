"""Run the demo for several seeds and print what its ordering is: the table that CI does not time.

    python -m pipelines.demo_table --seeds 5

Thread counts and machines change the figures like another seed does.
"""

import json
import shutil
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from pipelines.demo import ARMS, Demo, run_demo


def rows(results: list[dict[str, Any]]) -> list[str]:
    """Return the table's lines: each seed, then means and standard deviations."""
    lines = ["seed  " + "".join(f"{arm:>8} %{'KL':>8}" for arm in ARMS)]
    for result in results:
        scores = (result["arms"][arm] for arm in ARMS)
        cells = "".join(f"{score['accuracy']:>10.1f}{score['kl']:>8.3f}" for score in scores)
        lines.append(f"{result['seed']:>4}  {cells}")
    for name, of in (("mean", mean), ("sd", stdev)):
        if name == "mean" or len(results) > 1:
            cells = "".join(
                f"{of([r['arms'][arm]['accuracy'] for r in results]):>10.1f}"
                f"{of([r['arms'][arm]['kl'] for r in results]):>8.3f}"
                for arm in ARMS
            )
            lines.append(f"{name:>4}  {cells}")
    return lines


def verdicts(results: list[dict[str, Any]]) -> dict[str, bool]:
    """Return what is claimed of the ordering, and whether it holds."""
    scores = [result["arms"] for result in results]
    gains = [s["cache"]["accuracy"] - s["fixed"]["accuracy"] for s in scores]
    return {
        "on each seed KL(cache) <= 0.6 KL(fixed)": all(
            s["cache"]["kl"] <= 0.6 * s["fixed"]["kl"] for s in scores
        ),
        "on each seed accuracy cache - labels >= 5 points": all(
            s["cache"]["accuracy"] - s["labels"]["accuracy"] >= 5 for s in scores
        ),
        "on the mean accuracy cache - fixed >= 2 points": mean(gains) >= 2,
    }


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 to this, exclusive.")] = 5,
    out: Annotated[Path, typer.Option()] = Path("build/demo-table"),
    epochs: Annotated[int, typer.Option(help="Of each student.")] = 900,
    num_workers: Annotated[int, typer.Option("--workers")] = 1,
) -> None:
    """Print the demo's table; seeds that are done are not run again."""
    results = []
    for seed in range(seeds):
        folder = out / f"{epochs}-epochs" / str(seed)
        done = folder / "result.json"
        if done.exists():
            results.append(json.loads(done.read_text()))
        else:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
            demo = Demo(folder, seed, epochs, teacher_epochs=60, views=256, num_workers=num_workers)
            results.append(run_demo(demo))
    print("\n" + "\n".join(rows(results)) + "\n")
    held = verdicts(results)
    for claim, holds in held.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    if not all(held.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
