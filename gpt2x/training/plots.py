"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path

from gpt2x.tracking.tracker import read_metrics


def plot_classes(run_dir: Path) -> Path | None:
    """Draw the last confusion matrix and reliability diagram, of the test split if it was measured, into plots/classes.png;
    None if none was logged."""
    from gpt2x.evaluation.classification import plot_classification

    for row in reversed(read_metrics(run_dir)):
        for split in ("test", "val"):
            if (confusion := row.get(f"{split}/confusion")) is not None:
                counts = [list(predicted.values()) for predicted in confusion.values()]
                path = Path(run_dir) / "plots" / "classes.png"
                path.parent.mkdir(exist_ok=True)
                report = {
                    "labels": list(confusion),
                    "confusion": counts,
                    "calibration": row[f"{split}/calibration"],
                    "ece": {"value": row[f"{split}/ece"]},
                    "rows": sum(map(sum, counts)),
                }
                plot_classification(report, path, title=f"{split} split, step {row['step']}")
                return path
    return None


def plot_loss(run_dir: Path, title: str) -> Path | None:
    """Draw training and validation loss over steps into plots/loss.png; None if nothing was logged."""
    from matplotlib.figure import Figure  # without pyplot there is no window system to look for

    rows = read_metrics(run_dir)
    curves = {name: [(r["step"], r[name]) for r in rows if r.get(name) is not None] for name in ("train/loss", "val/loss")}
    if not any(curves.values()):
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if train := curves["train/loss"]:
        axes.plot(*zip(*train, strict=True), color="tab:blue", linewidth=0.8, alpha=0.7, label="train")
    if val := curves["val/loss"]:
        step, best = min(val, key=lambda point: point[1])
        label = f"validation (best {best:.3f} at step {step})"
        axes.plot(*zip(*val, strict=True), color="tab:orange", marker="o", markersize=3, label=label)
    axes.set(title=title, xlabel="step", ylabel="loss (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    path = Path(run_dir) / "plots" / "loss.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
