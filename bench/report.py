"""Lines for people, and JSON lines for programs."""

import json
import math

_HEADER = f"{'':24}{'':20}{'thr':>4}{'peak':>8}{'PyTorch':>16}{'posattn':>16} {'':9}{'ratio':>14}{'goal':>6}"


class Report:
    def __init__(self, path):
        self._file = open(path, "a")
        self._ratios = {}  # (group, threads) -> ratios of best times
        self._goals = {}

    def write(self, **record):
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def begin(self, machine, options):
        self.write(kind="run", **machine, options=options)
        print(
            f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']}; "
            f"posattn {machine['posattn']} {machine['commit']} ({machine['target']}), "
            f"torch {machine['torch']} ({machine['torch_capability']}), {machine['date']}"
        )
        print("Rates: of the best and of the median round. Ratio: PyTorch's time over posattn's, best and median.")
        print(_HEADER, flush=True)

    def row(self, row, group, threads, amount, times, peaks, errors):
        def rates(seconds):
            return amount / min(seconds) / 1e9, amount / seconds.median / 1e9

        theirs, ours = times["pytorch"], times["posattn"]
        best = min(theirs) / min(ours)
        rounds = sorted(a / b for a, b in zip(theirs, ours))
        median = rounds[len(rounds) // 2]
        peak = max(peaks) / 1e9
        met = best >= group.goal
        print(
            f"{row.group:24}{row.shape:20}{threads:4}{peak:8.1f}"
            f"{'%.1f/%.1f' % rates(theirs):>16}{'%.1f/%.1f' % rates(ours):>16} {group.unit:9}"
            f"{'%.2f/%.2f' % (best, median):>14}{group.goal:6.1f} {'' if met else 'below'}",
            flush=True,
        )
        self._ratios.setdefault((row.group, threads), []).append((best, median))
        self._goals[row.group] = group.goal
        self.write(
            kind="row",
            group=row.group,
            shape=row.shape,
            threads=threads,
            unit=group.unit,
            amount=amount,
            rounds=len(ours),
            seconds={name: {"best": min(t), "median": t.median} for name, t in times.items()},
            peak={"best": peak, "median": peaks.median / 1e9},
            ratio={"best": best, "median": median},
            goal=group.goal,
            error=errors,
        )

    def wrong(self, row, threads, error):
        print(f"{row.group:24}{row.shape:20}{threads:4} WRONG: {error}", flush=True)
        self.write(kind="wrong", group=row.group, shape=row.shape, threads=threads, what=str(error))

    def summary(self):
        print(f"\nGeometric means of the ratios\n{'':24}{'thr':>4}{'rows':>6}{'best':>8}{'median':>8}{'goal':>6}")
        for (group, threads), ratios in sorted(self._ratios.items(), key=lambda item: item[0][1]):
            best, median = (math.exp(sum(map(math.log, column)) / len(ratios)) for column in zip(*ratios))
            goal = self._goals[group]
            mark = "" if best >= goal else "below"
            print(f"{group:24}{threads:4}{len(ratios):6}{best:8.2f}{median:8.2f}{goal:6.1f} {mark}")
            self.write(kind="mean", group=group, threads=threads, rows=len(ratios), best=best, median=median, goal=goal)
