"""Lines for people, JSON lines for programs, and the ratios at the end."""

import json
import math
import sys

import tqdm

from json_lines import runs_of
from rows import GOALS

# What must be the same for rows of an interrupted run to be kept.
_SAME = ("cpu", "cores", "posattn", "commit", "target", "versions")


def _rows_of_last_run(path, machine):
    """Of the run at the end of the file, which must be of the same machine and versions."""
    rows = []
    for run in runs_of(path):
        other = [name for name in _SAME if run[0].get(name) != machine[name]]
        if other:
            sys.exit(f"--resume: {path} holds rows of another {', '.join(other)}, which would be lost")
        rows = [record for record in run if record.get("kind") == "row"]
    return rows


class Report:
    def __init__(self, path, machine, clock, resume):
        self._clock = clock
        self._rows = _rows_of_last_run(path, machine) if resume else []
        self._done = {(record["group"], record["shape"], record["threads"]) for record in self._rows}
        self._file = open(path, "w")
        self._write(kind="run", **machine)
        for record in self._rows:
            self._write(**record)
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        self._print(
            f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']}; "
            f"posattn {machine['posattn']} {machine['commit']} ({machine['target']}); {versions}; {machine['date']}"
        )
        self._print("Rates of best rounds; ratio: the best peer's time over posattn's, of best and of median rounds.")

    def _print(self, text):
        tqdm.tqdm.write(text)
        sys.stdout.flush()

    def _write(self, **record):
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def has(self, row, threads):
        return (row.group, row.shape, threads) in self._done

    def row(self, row, threads, amount, times, peaks, errors):
        seconds = {name: {"best": min(t), "median": t.median, "worst": max(t)} for name, t in times.items()}
        peers = [name for name in times if name not in ("posattn", "plain")]
        ours = seconds["posattn"]

        def against(names, which):
            return min(seconds[name][which] for name in names) / ours[which]

        peak = max(peaks)
        ratios = {row.group: (against(peers, "best"), against(peers, "median"))}
        if row.of_peak:
            ratios[row.of_peak] = (amount / ours["best"] / peak, amount / ours["median"] / peaks.median)
        if row.of_plain:
            ratios[row.of_plain] = (against(["plain"], "best"), against(["plain"], "median"))
        record = dict(
            kind="row",
            group=row.group,
            shape=row.shape,
            threads=threads,
            clock=self._clock,
            unit=row.unit,
            amount=amount,
            rounds=len(times["posattn"]),
            seconds=seconds,
            peak={"best": peak / 1e9, "median": peaks.median / 1e9},
            ratios=ratios,
            error=errors,
        )
        self._rows.append(record)
        self._write(**record)
        rates = "  ".join(f"{name} {amount / s['best'] / 1e9:.1f}" for name, s in seconds.items())
        shown = "  ".join(f"{best:.2f}/{median:.2f}" for best, median in ratios.values())
        mark = "" if ratios[row.group][0] >= GOALS[row.group] else "  below"
        self._print(
            f"{row.group:32}{row.shape:20}{threads} thr  {rates}  peak {peak / 1e9:.1f} {row.unit}  {shown}{mark}"
        )

    def dropped(self, row, threads, name, why):
        self._print(f"{row.group:32}{row.shape:20}{threads} thr  without {name}: {why}")
        self._write(kind="dropped", group=row.group, shape=row.shape, threads=threads, peer=name, why=why)

    def wrong(self, row, threads, error):
        self._print(f"{row.group:32}{row.shape:20}{threads} thr  WRONG: {error}")
        self._write(kind="wrong", group=row.group, shape=row.shape, threads=threads, what=str(error))

    def summary(self):
        """`ratio NAME x.xx goal y.yy`: geometric means over shapes, of best rounds."""
        means = {}
        for record in self._rows:
            for name, pair in record["ratios"].items():
                means.setdefault((record["threads"], name), []).append(pair)
        self._print("")
        for (threads, name), pairs in sorted(means.items(), key=lambda item: item[0][0]):
            best, median = (math.exp(sum(map(math.log, column)) / len(pairs)) for column in zip(*pairs))
            title = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
            least = min(pair[0] for pair in pairs)
            self._print(
                f"ratio {title} {best:.2f} goal {GOALS[name]:.2f}"
                f"  (median {median:.2f}, {len(pairs)} shapes, least {least:.2f})"
            )
            self._write(
                kind="ratio", name=title, best=best, median=median, least=least, shapes=len(pairs), goal=GOALS[name]
            )
