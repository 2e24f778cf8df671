"""A picture of each group with several shapes: rates by shape, next to the JSON lines they come from."""

import collections
import json
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (after the choice of a backend)


def _length(shape):
    found = re.search(r"\bS(\d+)", shape)
    return int(found.group(1)) if found else None


def write(path):
    """PATH.svg: one panel for each group and number of threads."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    panels = collections.defaultdict(list)
    for row in lines:
        if row["kind"] == "row" and _length(row["shape"]):
            head = row["shape"].split()[0]
            panels[f"{row['group']}, {head}, {row['threads']} thr"].append(row)
    panels = {name: rows for name, rows in panels.items() if len(rows) > 1}
    write_panels(path, panels, _draw)


def _draw(axis, rows):
    rows.sort(key=lambda row: _length(row["shape"]))
    sides = dict.fromkeys(side for row in rows for side in row["seconds"] if side != "plain")
    for side in sorted(sides, key=lambda side: side != "posattn"):
        points = [
            (_length(row["shape"]), row["amount"] / row["seconds"][side]["best"] / 1e9)
            for row in rows
            if side in row["seconds"]
        ]
        axis.plot(*zip(*points), marker=".", linewidth=2 if side == "posattn" else 1, label=side)
    peaks = [(_length(row["shape"]), row["peak"]["best"]) for row in rows]
    axis.plot(*zip(*peaks), color="grey", linestyle=":", label="peak")
    axis.set_ylabel(rows[0]["unit"], fontsize=8)


def write_panels(path, panels, draw, each_has_legend=False):
    """PATH.svg, where there are panels: title -> what draw(axis, ...) takes; the length of a call is on every x axis."""
    if not panels:
        return
    columns = 4
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(16, 3 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, content) in zip(axes.flat, panels.items()):
        draw(axis, content)
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.set_title(title, fontsize=9)
        if each_has_legend:
            axis.legend(fontsize=5)
    if not each_has_legend:
        axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path.with_suffix(".svg"))
    plt.close(figure)
