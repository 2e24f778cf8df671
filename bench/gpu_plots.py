"""A picture of what bench/gpu_peers.py measured: rates by length, next to the JSON lines they come from."""

import collections
import json

import matplotlib
import plots

matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text, which is smaller

_OURS = ("posattn", "plain sm90a", "table sm90a", "dense sm90a")


def _panels(rows):
    """title -> side -> [(length, rate)], and what a rate is."""
    panels, units = collections.defaultdict(lambda: collections.defaultdict(list)), {}
    for row in rows:
        if "tflops" in row:
            biased = "biased " if "flex alibi" in row["tflops"] else ""
            title = f"{row['type']} D {row['D']} {biased}{'causal' if row['causal'] else 'full'}"
            units[title] = "TFLOP/s"
            for side, rate in row["tflops"].items():
                panels[title][side].append((row["S"], rate))
        elif "keys" in row and "us" in row:
            title = f"decode {row['type']} D {row['D']} B {row['B']} H {row['H']}/{row['kv_heads']} {row['bias']}".strip()
            units[title] = "GB/s"
            for side, times in row["us"].items():
                panels[title][side].append((row["keys"], row["bytes"] / times["graph"] / 1e3))
    # A line needs two points.
    for title in list(panels):
        panels[title] = {side: sorted(points) for side, points in panels[title].items() if len(points) > 1}
    return {title: sides for title, sides in panels.items() if sides}, units


def write(path):
    """PATH.svg: one panel for each kind of call."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    panels, units = _panels(rows)

    def draw(axis, panel):
        unit, sides = panel
        for side in sorted(sides, key=lambda side: side not in _OURS):
            style = {"linewidth": 2} if side in _OURS else {"linewidth": 1, "alpha": 0.8}
            axis.plot(*zip(*sides[side]), marker=".", label=side, **style)
        axis.set_ylabel(unit, fontsize=8)

    plots.write_panels(path, {title: (units[title], sides) for title, sides in panels.items()}, draw, True)
