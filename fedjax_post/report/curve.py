"""The learning curve of a run, as a picture."""

from pathlib import Path

from fedjax_post.report.records import read_records, series

_BLUE, _ORANGE = "#2a6fbb", "#d9730d"


def draw_curve(directory: str | Path, path: str | Path | None = None) -> Path:
    """Draws training and held-out loss, and exact match where there is one, by rounds.

    Args:
      directory: of the run; only its `records.jsonl` is read.
      path: of the picture; default: `learning_curve.png` in the directory.

    Returns:
      The picture's path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_records(directory)
    path = Path(directory) / "learning_curve.png" if path is None else Path(path)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(*series(records, "loss"), color=_BLUE, alpha=0.45, label="clients, training")
    done, loss = series(records, "eval_loss")
    if done:
        axes.plot(done, loss, "o-", color=_BLUE, markersize=3, label="held out")
    axes.set(xlabel="round", ylabel="loss, nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    done, match = series(records, "eval_exact_match")
    if done:
        right = axes.twinx()
        percent = [100 * value for value in match]
        right.plot(done, percent, "s-", color=_ORANGE, markersize=3, label="exact match, held out")
        right.set(ylabel="exact match, %", ylim=(0, 100))
        right.spines["top"].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    aside = path.with_name(f".{path.name}")
    figure.savefig(aside, dpi=110, format="png")
    aside.replace(path)
    return path
