"""Shows who holds what: a table of the clients, and a picture of their shares of the rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_post import integrity
from fedjax_post.report.drawing import HATCHES, colour, new_figure, save
from fedjax_post.report.table import columns

NAME = "holdings.json"
_MOST_ROWS = 40  # clients in a table
_MOST_BARS = 50  # clients with a bar of their own
_MOST_CELLS = 60  # clients in a heat map
_MOST_NAMES = 25  # clients whose names are written

Content = Mapping[str, Any]  # as `data.holdings` returns it


def read_holdings(directory: str | Path) -> Content:
    """Returns who holds what in a run, from `holdings.json` in its folder.

    Raises:
      FileNotFoundError: if there is no such file.
      DamagedError: if it has changed since it was written.
    """
    return integrity.read_file(Path(directory) / NAME)


def holdings_table(content: Content) -> str:
    """Returns a text table with each client's rows, tokens, held-out rows, and rows of each group.

    Of more than 40 clients, the first ones are shown.

    Args:
      content: as `read_holdings` returns it.
    """
    lines = holdings_rows(content)
    more = content["clients"] - len(lines) + 1
    return f"{columns(lines)}\nand {more:,} more clients" if more else columns(lines)


def holdings_rows(content: Content) -> list[list[str]]:
    """Returns the rows of that table, the header first.

    Args:
      content: as `read_holdings` returns it.
    """
    lines = [["client", "rows", "tokens", "held out", *content["groups"]]]
    shown = content["names"][:_MOST_ROWS]
    each = (content[name] for name in ("counts", "tokens", "heldout"))
    for name, counts, tokens, heldout in zip(shown, *each, strict=False):
        lines.append([name, *(f"{n:,}" for n in (sum(counts), tokens, heldout, *counts))])
    return lines


def draw_holdings(content: Content, path: str | Path) -> Path:
    """Draws who holds what, and returns the path of the picture.

    Up to 50 clients have a bar each, divided into the groups of their rows, above a bar of their
    held-out rows. More clients are shown as a histogram of their numbers of rows, and a heat map of
    the groups' shares for 60 of them, evenly spaced among the clients by their largest group.

    Args:
      content: as `read_holdings` returns it.
      path: of the picture.
    """
    path = Path(path)
    clients, groups = len(content["names"]), content["groups"]
    figure = new_figure(max(7.0, min(0.3 * clients + 3.5, 13.0)), 4.6)
    if clients <= _MOST_BARS:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        _draw_bars(upper, lower, content)
        upper.legend(
            reverse=True,
            title=content["by"],
            bbox_to_anchor=(1.0, 1.0),
            loc="upper left",
            frameon=False,
            fontsize="small" if len(groups) > 10 else None,
        )
    else:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
        _draw_sizes(left, content)
        figure.colorbar(_draw_shares(right, content), label="share of the client's rows")
    figure.suptitle(_title(content), fontsize="medium")
    return save(figure, path)


def _title(content: Content) -> str:
    total, shown = content["clients"], len(content["names"])
    part = "" if total == shown else f", {shown:,} of them shown"
    return f"{content['partition']}: {total:,} clients{part}, {content['rows']:,} rows"


def _colours(content: Content) -> list[Any]:
    """Returns a colour for each group; those of lengths are in order."""
    from matplotlib import colormaps

    count = len(content["groups"])
    if content["by"] == "length":
        return [colormaps["viridis"](i / max(1, count - 1)) for i in range(count)]
    return [colour(i, count) for i in range(count)]


def _draw_bars(upper: Any, lower: Any, content: Content) -> None:
    counts, names = np.array(content["counts"]), content["names"]
    places, tops = np.arange(len(names)), counts.cumsum(axis=1)
    edged = {"edgecolor": "white", "linewidth": 0.5}  # groups are apart without colours too
    for group, shade in enumerate(_colours(content)):
        below = tops[:, group] - counts[:, group]
        style = {"color": shade, "label": content["groups"][group], **edged}
        style |= {"hatch": HATCHES[group % len(HATCHES)]}
        upper.bar(places, counts[:, group], 0.85, bottom=below, **style)
    lower.bar(places, content["heldout"], 0.85, color="0.5")
    upper.set(ylabel="rows to train on", ylim=(0, 1.05 * tops.max()))
    lower.set(ylabel="held out", xlabel="client", ylim=(0, 1.15 * max(1, *content["heldout"])))
    if len(names) <= _MOST_NAMES:
        short = [name if len(name) <= 18 else f"{name[:17]}…" for name in names]
        turned = max(map(len, short)) > 3
        style = {"rotation": 40, "ha": "right"} if turned else {}
        lower.set_xticks(places, short, fontsize="small", **style)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.get_major_locator().set_params(integer=True)
    lower.yaxis.get_major_locator().set_params(nbins=3)


def _draw_sizes(axes: Any, content: Content) -> None:
    sizes = np.sum(content["counts"], axis=1)
    low, high = sizes.min(), sizes.max()
    wide = high > 20 * low  # sizes of several orders of magnitude
    spaced = np.geomspace if wide else np.linspace
    edges = np.unique(spaced(low, high + 1, 25).astype(int)) - 0.5  # each whole number in one bin
    axes.hist(sizes, bins=edges, color="0.5")
    axes.set(xlabel="rows of a client", ylabel="clients", xscale="log" if wide else "linear")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_shares(axes: Any, content: Content) -> Any:
    counts = np.array(content["counts"])
    shares = counts / counts.sum(axis=1, keepdims=True)
    order = np.argsort(shares.argmax(axis=1), kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(len(order), _MOST_CELLS)).astype(int)]
    image = axes.imshow(
        shares[chosen], aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="none"
    )
    groups = content["groups"]
    axes.set_xticks(range(len(groups)), groups, rotation=40, ha="right", fontsize="small")
    axes.set(ylabel=f"{len(chosen)} clients, by largest group", yticks=[], xlabel=content["by"])
    return image
