"""Speed of posattn on a GPU beside cuDNN, FlashAttention-2, FlexAttention and PyTorch: every benchmark of bench/gpu_*.py.

    ./bazelw run //bench:gpu_peers -- --quick

or, where PyTorch is but Bazel is not, with libraries that were built elsewhere:

    ./bazelw build //bench:gpu_peers
    python3 bench/gpu_peers.py --kernels bazel-bin/bench/libgpu_kernels.so \\
        --library bazel-bin/runtime/c_api/libposattn_cuda.so --quick

Each part is a process of its own, so that one that fails loses nothing of the others. Rows go to the output as a part
ends; the ratios of all parts come last, as "ratio NAME x.xx goal y.yy", and a plot is written beside the rows.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import gpu_report
import machine
import torch
from json_lines import runs_of

FOLDER = pathlib.Path(__file__).resolve().parent
PARTS = {"attention": "kernels", "decode": "library", "float32": "library", "layers": "library"}
WITH_QUICK = ("attention", "decode")


def part_of(run):
    return next((part for part in PARTS if f"gpu_{part}.py" in run[0]["command"]), None)


def run_part(part, options):
    """Its records, or none if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        rows = pathlib.Path(folder) / "rows.jsonl"
        command = [sys.executable, FOLDER / f"gpu_{part}.py", vars(options)[PARTS[part]], "--out", rows]
        command += ["--commit", options.commit] + ["--quick"] * (options.quick and part in WITH_QUICK)
        failed = subprocess.run(command).returncode != 0
        return [] if failed else sum(runs_of(rows), [])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; repeatable")
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    parser.add_argument("--resume", action="store_true", help="keep parts that the output holds for this commit")
    parser.add_argument("--out", help="JSON lines; parts replace their older rows (bench/results/gpu.jsonl of the workspace)")
    parser.add_argument("--commit", default="", help="of the libraries, for the rows (the workspace's)")
    parser.add_argument("--kernels", required=True, help="libgpu_kernels.so")
    parser.add_argument("--library", required=True, help="libposattn_cuda.so")
    options = parser.parse_args()
    options.commit = options.commit or machine.commit()
    if not torch.cuda.is_available():
        sys.exit("gpu_peers: PyTorch finds no GPU here")
    default = pathlib.Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."), "bench", "results", "gpu.jsonl")
    called_from = os.environ.get("BUILD_WORKING_DIRECTORY", ".")  # not where Bazel runs it
    out = pathlib.Path(called_from, options.out) if options.out else default
    out.parent.mkdir(parents=True, exist_ok=True)

    done = {part_of(run): run for run in runs_of(out)}
    wanted, failed = options.only or list(PARTS), []
    for number, part in enumerate(wanted, 1):
        if options.resume and part in done and done[part][0]["commit"] == options.commit:
            continue
        print(f"== {part}, {number} of {len(wanted)}", flush=True)
        records = run_part(part, options)
        if not records:
            failed.append(part)
            continue
        done[part] = records
        out.write_text("".join(json.dumps(record) + "\n" for run in done.values() for record in run))

    for part in wanted:
        for record in done.get(part, ()):
            if record["kind"] == "ratio":
                print(gpu_report.ratio_line(record))
    try:
        import gpu_plots

        gpu_plots.write(out)
    except ImportError as error:
        print(f"no plot: {error}")
    if failed:
        sys.exit("failed: " + ", ".join(failed))


if __name__ == "__main__":
    main()
