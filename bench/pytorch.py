"""Speed of posattn against PyTorch on this machine's CPU: both in one process, in turns, on the same inputs.

Every row is checked first: posattn must be as close to float64 as the library's accuracy rule says, with PyTorch's
float32 in the place of the naive formula. What is timed is the call that a user makes: attend() with its packing, or a
layer's whole forward.
"""

import argparse
import ctypes
import gc
import os
import pathlib
import sys

import torch

import layers  # noqa: F401 (adds its rows)
import machine
import posattn_c
import report
import timing
from rows import GROUPS


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="TEXT", help="rows with TEXT in group or shape; repeatable")
    parser.add_argument("--threads", default="1,2", metavar="N,N", help="numbers of threads to run with")
    parser.add_argument("--seconds", type=float, help="for each row (2; quick: 0.4)")
    parser.add_argument("--min-rounds", type=int, help="for each row, however long it takes (7; quick: 3)")
    parser.add_argument("--clock", default="wall", choices=timing.CLOCKS, help="cpu: for one thread on a busy machine")
    parser.add_argument("--quick", action="store_true", help="a few rows, for less than two minutes")
    parser.add_argument("--target", default="", help="force posattn's kernels: amx, avx512, avx2 or sse41")
    parser.add_argument("--output", help="JSON lines are appended here (bench/results/pytorch.jsonl of the workspace)")
    parser.add_argument("--library", required=True, help="libposattn.so")
    parser.add_argument("--peak", required=True, help="libpeak.so")
    arguments = parser.parse_args()
    arguments.threads = [int(count) for count in arguments.threads.split(",")]
    if arguments.seconds is None:
        arguments.seconds = 0.4 if arguments.quick else 2.0
    if arguments.min_rounds is None:
        arguments.min_rounds = 3 if arguments.quick else 7
    return arguments


def output_path(given):
    """Relative to where the user called Bazel."""
    if given:
        return pathlib.Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."), given)
    path = pathlib.Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."), "bench", "results", "pytorch.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class Peak:
    """libpeak.so: what the machine can do, for about a millisecond at a time."""

    def __init__(self, path):
        c = ctypes.CDLL(str(path))
        self._flops, self._read = c.peak_flops, c.peak_read
        self._flops.restype = self._read.restype = ctypes.c_double
        self._flops.argtypes = [ctypes.c_int, ctypes.c_int64]
        self._read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int64]

    def function(self, threads, read):
        if read is None:
            return lambda: self._flops(threads, 200_000)
        return lambda: self._read(threads, read.data_ptr(), read.numel())


class Wrong(Exception):
    """The results differ."""


def check(work):
    """The largest errors of both sides; raises if posattn's is out of bounds."""
    work.posattn()
    reference = work.reference
    theirs = (work.part(work.pytorch()).double() - reference).abs().max().item()
    ours = (work.part(work.out).double() - reference).abs().max().item()
    everywhere = (work.out - work.pytorch()).abs().max().item()
    if not ours <= 2 * theirs + 1e-6:
        raise Wrong(f"posattn is {ours:.2e} off, PyTorch {theirs:.2e}")
    if not everywhere <= 4 * (ours + theirs) + 1e-5:
        raise Wrong(f"posattn and PyTorch differ by {everywhere:.2e} where float64 was not computed")
    return {"posattn": ours, "pytorch": theirs}


def wanted(row, arguments):
    if arguments.quick and not row.quick:
        return False
    return not arguments.only or any(text in f"{row.group} {row.shape}" for text in arguments.only)


def measure(library, peak, row, group, arguments, to):
    """The row with every number of threads; whether both sides computed the same."""
    torch.manual_seed(0)
    same, work = True, None
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        library.set_num_threads(threads)
        try:
            work = work or row.build(library)
            errors = check(work)
        except (posattn_c.Error, Wrong) as error:
            to.wrong(row, threads, error)
            same = False
            continue
        times, peaks = timing.take_turns(
            {"pytorch": work.pytorch, "posattn": work.posattn},
            peak.function(threads, work.read),
            threads,
            arguments.seconds,
            arguments.min_rounds,
            timing.CLOCKS[arguments.clock],
        )
        to.row(row, group, threads, work.amount, times, peaks, errors)
    return same


def main():
    arguments = parse_arguments()
    too_many = [count for count in arguments.threads if count > machine.available_cores()]
    if too_many:
        print(f"Skipped {too_many} threads: this process may use {machine.available_cores()} cores.")
        arguments.threads = [count for count in arguments.threads if count not in too_many]
    library = posattn_c.Library(arguments.library)
    library.set_target(arguments.target)
    to = report.Report(output_path(arguments.output))
    options = {name: value for name, value in vars(arguments).items() if name not in ("library", "peak", "output")}
    to.begin(machine.describe(library), options)
    peak = Peak(arguments.peak)
    wrong = 0
    with torch.inference_mode():
        for group in GROUPS.values():
            for row in group.rows:
                if wanted(row, arguments):
                    wrong += not measure(library, peak, row, group, arguments, to)
                    gc.collect()
    to.summary()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
