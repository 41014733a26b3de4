"""Folders of runs, as training writes them."""

import json
import math
from pathlib import Path
from typing import Any

SETTINGS: dict[str, Any] = {
    "student": "torchvision:resnet18",
    "learn": "cache",
    "epochs": 4,
    "batch_size": 32,
    "learning_rate": 0.001,
    "temperature": 1.0,
    "seed": 0,
    "ema": None,
    "dataset": "1f" * 32,
    "cache": "a0" * 32,
    "recipe": {"size": 32, "crop": {"scale": [0.2, 1.0]}, "mix": {"alpha": 0.2}},
    "val_cache": "b1" * 32,
}


def metrics(
    epochs: int, *, of: int = 4, steps: int = 10, better: float = 1.0, validated: bool = True
) -> list[dict[str, Any]]:
    """Return the lines of a run's first epochs, of which it has `of`; the better learns faster."""
    lines: list[dict[str, Any]] = []
    for step in range(1, epochs * steps + 1):
        done = step / (of * steps)
        loss = 0.2 + 3 * math.exp(-4 * better * done)
        line = {"step": step, "learning_rate": 1e-3 * min(10 * done, 1) * math.cos(1.5 * done)}
        if step % steps:
            if step % max(steps // 3, 1) == 0:
                lines.append(line | {"loss": loss + 0.3 * math.sin(7 * step)})
            continue
        line |= {"epoch": step // steps, "loss": loss, "grad_norm": 0.7}
        line |= {"images_per_s": 800 * better, "wait_share": 0.02}
        if validated:
            line |= {"val_samples": 100, "val_top1": 0.9 - loss / 5, "val_top5": 0.99 - loss / 9}
            line |= {"val_kl_nats": loss / 3, "val_agreement": 0.95 - loss / 6}
            line |= {"val_calibration_error": 0.02 + loss / 50}
        lines.append(line)
    return lines


def write_run(folder: Path, lines: list[dict[str, Any]], **settings: Any) -> Path:
    """Write a run's folder, with settings that are not the usual ones."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SETTINGS | settings))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
