"""What the benchmarks for GPUs have in common: options, rows of JSON with the machine at their head, and ratios at the end."""

import argparse
import datetime
import json
import math
import os
import sys

import torch


def parser(doc, rounds, default_library):
    """Options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help=f"as built: {default_library}")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--out", help="append rows to this file")
    parser.add_argument("--commit", default="", help="of the library, for the rows")
    parser.set_defaults(default_library=default_library)
    return parser


def driver_version():
    try:
        with open("/proc/driver/nvidia/version") as file:
            return next((word for word in file.readline().split() if word.count(".") == 2), "")
    except OSError:
        return ""


def ratio_line(record):
    return "ratio {name} {mean:.2f} goal {goal:.2f} (lowest {lowest:.2f} of {shapes})".format(**record)


class Report:
    """Prints as it goes on; close() prints "ratio NAME x.xx goal y.yy" for each name and writes the file."""

    def __init__(self, options, **more):
        device = torch.cuda.get_device_properties(0)
        own = ("library", "default_library", "out", "commit", "rounds")
        flags = [f"--{k.replace('_', '-')}" + ("" if v is True else f" {v}")
                 for k, v in vars(options).items() if k not in own and v]  # fmt: skip
        self._out, self._ratios = options.out, {}
        self._rows = [{
            "kind": "run", "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "device": device.name, "multiprocessors": device.multi_processor_count, "driver": driver_version(),
            "torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "commit": options.commit,
            "rounds": options.rounds, **more,
            "command": " ".join(["python3", "bench/" + os.path.basename(sys.argv[0]), options.default_library, *flags]),
        }]  # fmt: skip
        print(json.dumps(self._rows[0]), flush=True)

    def row(self, text, **record):
        self._rows.append({"kind": "row", **record})
        print(text, flush=True)

    def ratio(self, name, goal, value):
        """The best peer's time over ours, for one shape."""
        self._ratios.setdefault((name, goal), []).append(value)

    def close(self):
        for (name, goal), values in self._ratios.items():
            mean = math.exp(sum(map(math.log, values)) / len(values))
            record = {"kind": "ratio", "name": name, "mean": round(mean, 4), "lowest": round(min(values), 4),
                      "shapes": len(values), "goal": goal}  # fmt: skip
            self._rows.append(record)
            print(ratio_line(record), flush=True)
        if self._out:
            with open(self._out, "a") as file:
                file.writelines(json.dumps(row) + "\n" for row in self._rows)
