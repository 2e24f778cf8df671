"""Speed of posattn against other CPU libraries on this machine: all in one process, in turns, on the same inputs.

Every row is checked first: posattn must be as close to float64 as the library's accuracy rule says, with PyTorch's
result in the place of the naive formula, and a peer that computes something else is left out and named. What is timed
is the call that a user makes: attend() with its packing, or a layer's whole forward. A ratio is the time of the best
peer over posattn's; with it come what posattn reaches of this machine's own peak, and of its own speed without a bias.
"""

import argparse
import ctypes
import gc
import os
import pathlib
import sys

import torch
import tqdm

import attention  # noqa: F401 (these four add their rows)
import decode  # noqa: F401
import layers  # noqa: F401
import machine
import plots
import posattn_c
import report
import speech  # noqa: F401
import timing
from rows import ROWS


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="TEXT", help="rows with TEXT in group or shape; repeatable")
    parser.add_argument("--threads", default="1,2", metavar="N,N", help="numbers of threads to run with")
    parser.add_argument("--seconds", type=float, help="for each row (1.5; quick: 0.3)")
    parser.add_argument("--min-rounds", type=int, help="for each row, however long it takes (5; quick: 3)")
    parser.add_argument("--clock", default="wall", choices=timing.CLOCKS, help="cpu: for one thread on a busy machine")
    parser.add_argument("--quick", action="store_true", help="a few rows, for less than two minutes")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the output holds already")
    parser.add_argument("--target", default="", help="force posattn's kernels: amx, avx512bf16, avx512, avx2 or sse41")
    parser.add_argument("--output", help="JSON lines, with plots beside them (bench/results/peers.jsonl of the workspace)")
    parser.add_argument("--library", required=True, help="libposattn.so")
    parser.add_argument("--peak", required=True, help="libpeak.so")
    arguments = parser.parse_args()
    arguments.threads = [int(count) for count in arguments.threads.split(",")]
    if arguments.seconds is None:
        arguments.seconds = 0.3 if arguments.quick else 1.5
    if arguments.min_rounds is None:
        arguments.min_rounds = 3 if arguments.quick else 5
    return arguments


def output_path(given):
    """Relative to where the user called Bazel."""
    if given:
        return pathlib.Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."), given)
    path = pathlib.Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."), "bench", "results", "peers.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class Peak:
    """libpeak.so: what the machine can do, for about a millisecond at a time."""

    def __init__(self, path):
        c = ctypes.CDLL(str(path))
        self._flops = {torch.float32: c.peak_flops, torch.bfloat16: c.peak_flops_bf16}
        self._read = c.peak_read
        for function in (*self._flops.values(), self._read):
            function.restype = ctypes.c_double
        for function in self._flops.values():
            function.argtypes = [ctypes.c_int, ctypes.c_int64]
        self._read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int64]

    def function(self, threads, dtype, read):
        if read is None:
            return lambda: self._flops[dtype](threads, 100_000)
        return lambda: self._read(threads, read.data_ptr(), read.numel())


class Wrong(Exception):
    """The results differ."""


def check(work, dtype, drop):
    """The largest error of every side. Raises if posattn's is out of bounds; drops a peer that is far off."""
    work.posattn()
    results = {"posattn": work.out.clone()}
    for name in list(work.peers):
        try:
            results[name] = work.peers[name]()
        except Exception as error:  # whatever a framework throws: the row goes on without it
            drop(name, f"{type(error).__name__}: {error}".splitlines()[0][:200])
            del work.peers[name]
    if not work.peers:
        raise Wrong("no peer computes this")
    errors = {name: (work.part(out).double() - work.reference).abs().max().item() for name, out in results.items()}
    naive = errors[next(iter(work.peers))]
    largest = work.reference.abs().max().item()
    if not errors["posattn"] <= 2 * naive + 1e-6 + work.off * largest:
        raise Wrong(f"posattn is {errors['posattn']:.2e} off, {next(iter(work.peers))} {naive:.2e}")
    most = 1e-3 if dtype == torch.float32 else 0.05
    for name in list(work.peers):
        if not errors[name] <= most * max(1.0, largest):
            drop(name, f"{errors[name]:.2e} off")
            del work.peers[name]
    return errors


def measure(library, peak, row, threads, arguments, to):
    """Whether posattn computed what it should."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    library.set_num_threads(threads)
    try:
        work = row.build(library, threads)
        errors = check(work, row.dtype, lambda name, why: to.dropped(row, threads, name, why))
    except (posattn_c.Error, Wrong) as error:
        to.wrong(row, threads, error)
        return False
    runs = {**work.peers, "posattn": work.posattn}
    if work.plain:
        runs["plain"] = work.plain
    times, peaks = timing.take_turns(
        runs,
        peak.function(threads, row.dtype, work.read),
        threads,
        arguments.seconds,
        arguments.min_rounds,
        timing.CLOCKS[arguments.clock],
    )
    to.row(row, threads, work.amount, times, peaks, errors)
    return True


def wanted(row, arguments):
    if arguments.quick and not row.quick:
        return False
    return not arguments.only or any(text in row.key for text in arguments.only)


def main():
    arguments = parse_arguments()
    too_many = [count for count in arguments.threads if count > machine.available_cores()]
    if too_many:
        print(f"Skipped {too_many} threads: this process may use {machine.available_cores()} cores.")
        arguments.threads = [count for count in arguments.threads if count not in too_many]
    library = posattn_c.Library(arguments.library)
    library.set_target(arguments.target)
    path = output_path(arguments.output)
    to = report.Report(path, machine.describe(library), arguments.clock, arguments.resume)
    peak = Peak(arguments.peak)
    work = [(row, threads) for row in ROWS if wanted(row, arguments) for threads in arguments.threads]
    work = [(row, threads) for row, threads in work if not to.has(row, threads)]
    right = True
    with torch.inference_mode():
        # Without a terminal there are lines, and no bar.
        for row, threads in tqdm.tqdm(work, unit="row", disable=None, dynamic_ncols=True):
            right &= measure(library, peak, row, threads, arguments, to)
            gc.collect()
    to.summary()
    plots.write(path)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
