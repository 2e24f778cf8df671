"""Decoding on a GPU: one query row against long keys, beside a copy of as many bytes and PyTorch's attention.

    ./bazelw build //runtime/c_api:libposattn_cuda.so
    python3 bench/gpu_decode.py bazel-bin/runtime/c_api/libposattn_cuda.so [--quick] [--out results.jsonl] [--commit C]

needs a GPU, its driver and PyTorch on the machine that it runs on, which need not be the one that built. Each shape is
first checked against float64 by the rule of the library's tests. Then all sides take turns in rounds; numbers are
medians over rounds. Every side uses several keys and values in turn, together larger than the GPU's cache. Two times of
a call are taken: "eager", calls that the host makes one after the other, its own work included, and "graph", the same
calls recorded in a CUDA graph; a copy counts with the shorter one. Grouped queries are given to the peers both as they
are and as rows of one head, which spares them reading keys more than once. ALiBi is given to them as a mask. Last come lines
"ratio NAME x.xx goal y.yy" with the lowest single ratio.
"""

import contextlib
import ctypes
import math
import statistics
import sys
import time
import warnings

import gpu_report
import posattn_c
import torch
import torch.nn.functional as F
from gpu_attention import DEVICE, reference, wait
from torch.nn.attention import SDPBackend, sdpa_kernel

warnings.filterwarnings("ignore")  # of PyTorch, about kernels that do not take a call

_CACHE_BYTES = 200e6  # more than any cache holds
_LONG = 16384
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def alibi(heads, length):
    """Slopes, and the bias of a last token."""
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1, device=DEVICE) / heads)
    return slopes, slopes[:, None, None] * torch.arange(1 - length, 1, device=DEVICE)


class Ours:
    """posattn_attend_cuda of one query tensor and several keys and values.

    bias: "", "alibi" (the branch, for a last token), or "mask" (the tensor `added`).
    """

    def __init__(self, library, query, keys, values, bias="", added=None, causal=False):
        self.out = torch.full_like(query, math.nan)
        self.kept = [query, keys, values, added]
        if bias == "alibi":
            length = keys[0].size(2)
            slopes, _ = alibi(query.size(1), length)
            position = torch.full((1,), length - 1, dtype=torch.float32, device=DEVICE)
            branch = (posattn_c.Branch * 1)()
            branch[0].kind, branch[0].table = posattn_c.ALIBI, posattn_c.Tensor.of(slopes)
            self.kept += [slopes, position, branch]
        calls = []
        for key, value in zip(keys, values):
            args = library.init(posattn_c.AttendArgs(), "attend_args")
            for name, tensor in (("query", query), ("key", key), ("value", value), ("out", self.out)):
                setattr(args, name, posattn_c.Tensor.of(tensor))
            args.options.causal = posattn_c.CAUSAL_BOTTOM_RIGHT if causal else 0
            if bias == "alibi":
                args.branches, args.num_branches = branch, 1
                args.options.q_positions = posattn_c.Tensor.of(position)
            elif bias == "mask":
                args.options.add_mask = posattn_c.Tensor.of(added)
            calls.append(args)
        size = ctypes.c_size_t()
        stream = torch.cuda.current_stream().cuda_stream
        library.call("attend_cuda_workspace_size", ctypes.byref(calls[0]), ctypes.c_void_p(stream), ctypes.byref(size))
        self.workspace = torch.empty(size.value, dtype=torch.uint8, device=DEVICE)
        self.library, self.calls, self.size = library, calls, size

    def run(self, i):
        self.library.call(
            "attend_cuda", ctypes.byref(self.calls[i]), ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
            ctypes.c_void_p(self.workspace.data_ptr()), self.size,
        )  # fmt: skip


def sides(library, query, keys, values, bias, added):
    """name -> (function of the index of keys and values, the backend that it needs)."""
    ours = Ours(library, query, keys, values, bias, added)
    to = torch.empty_like(keys[0])
    runs = {"posattn": (ours.run, None), "copy": (lambda i: to.copy_(keys[i]), None)}
    group = query.size(1) // keys[0].size(1)
    rows = query.view(query.size(0), -1, group, query.size(3))
    of_rows = None if added is None else added.expand(1, query.size(1), 1, -1).reshape(1, -1, group, added.size(-1))
    for name, backend in _BACKENDS.items():
        runs[name] = (
            lambda i: F.scaled_dot_product_attention(query, keys[i], values[i], added, enable_gqa=group > 1),
            backend,
        )
        if group > 1:
            runs[name + " rows"] = (lambda i: F.scaled_dot_product_attention(rows, keys[i], values[i], of_rows), backend)
    return ours, runs


def loop_of(run, backend, count, calls):
    """A function that makes `calls` calls; the backend is chosen once, as that takes longer than a call."""

    def loop():
        with sdpa_kernel(backend) if backend else contextlib.nullcontext():
            for i in range(calls):
                run(i % count)

    return loop


def graph_of(loop):
    """A function that replays its calls."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loop()
    return graph.replay


def time_sides(runs, count, size, rounds):
    """name -> {"eager": microseconds of a call, "graph": the same}."""
    calls = max(8, min(200, int(2e9 / size)))
    todo = []
    for name, (run, backend) in runs.items():
        try:
            loop_of(run, backend, 1, 1)()
            torch.cuda.synchronize()
            loop = loop_of(run, backend, count, calls)
            todo += [(name, "eager", loop), (name, "graph", graph_of(loop))]
        except Exception:  # a peer that does not take this call
            torch.cuda.synchronize()
            if name == "posattn":
                raise
            todo = [entry for entry in todo if entry[0] != name]
    times = {}
    for turn in range(rounds):
        for name, way, run in todo if turn % 2 else todo[::-1]:
            torch.cuda.synchronize()
            begin = time.perf_counter()
            run()
            torch.cuda.synchronize()
            times.setdefault(name, {}).setdefault(way, []).append((time.perf_counter() - begin) / calls * 1e6)
    return {name: {way: statistics.median(x[1:]) for way, x in ways.items()} for name, ways in times.items()}


def check(ours, query, key, value, added, what):
    ours.out.fill_(math.nan)
    ours.run(0)
    wait(what)
    exact, _ = reference(query, key, value, False, added, torch.float64)
    naive, _ = reference(query, key, value, False, added, query.dtype)
    allowed = 2 * (naive - exact).abs().max().item() + 1e-6
    share = (ours.out - exact).abs().max().item() / allowed
    if not share <= 1:
        sys.exit(f"wrong: {what}: {share} of what is allowed")
    return share


def jobs(quick):
    """(type, D, batch, query heads, key heads, keys, bias)"""
    lengths = (1024, 16384, 131072) if quick else (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
    for dtype in (torch.bfloat16, torch.float32) if quick else (torch.bfloat16, torch.float16, torch.float32):
        for dim in (128, 64):
            for heads in (8, 32, 64):
                for keys in lengths:
                    if quick and (heads == 64 or (dim == 64 and heads == 32)):
                        continue
                    if dtype == torch.float16 and (heads != 32 or dim != 128):
                        continue
                    if heads * keys * dim * dtype.itemsize <= 32 * 131072 * 256:
                        yield dtype, dim, 1, heads, heads, keys, ""
        for keys in (1024, 16384, 131072):
            for batch, heads, kv_heads in ((1, 32, 8), (4, 32, 8), (1, 64, 8)):
                if batch * keys <= 131072:
                    yield dtype, 128, batch, heads, kv_heads, keys, ""
            for bias in ("alibi", "mask") if dtype != torch.float16 else ():
                for heads, kv_heads in ((32, 32), (64, 8)):
                    if heads != 32 or keys != 131072:
                        yield dtype, 128, 1, heads, kv_heads, keys, bias


def main():
    parser = gpu_report.parser(__doc__, 6, "bazel-bin/runtime/c_api/libposattn_cuda.so")
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    parser.add_argument("--seconds", type=float, default=400, help="after which no other shape is begun")
    options = parser.parse_args()

    library = posattn_c.Library(options.library)
    report = gpu_report.Report(options)
    torch.manual_seed(0)
    begin = time.monotonic()
    with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
        for dtype, dim, batch, heads, kv_heads, length, bias in jobs(options.quick):
            if time.monotonic() - begin > options.seconds:
                print("out of time")
                break
            size = 2 * batch * kv_heads * length * dim * dtype.itemsize
            count = max(2, min(64, math.ceil(_CACHE_BYTES / size)))
            new = lambda: torch.randn(batch, kv_heads, length, dim, device=DEVICE).to(dtype)
            keys, values = [new() for _ in range(count)], [new() for _ in range(count)]
            query = torch.randn(batch, heads, 1, dim, device=DEVICE).to(dtype)
            exact = None  # what is added to scores; peers take it in the type of the keys
            if bias == "alibi":
                exact = alibi(heads, length)[1][None]
            elif bias == "mask":
                exact = torch.randn(batch, 1, 1, length, device=DEVICE).to(dtype)
            added = None if exact is None else exact.to(dtype)
            ours, runs = sides(library, query, keys, values, bias, added)
            name = str(dtype).split(".")[1]
            what = f"{name} D {dim} B {batch} H {heads}/{kv_heads} keys {length}" + (bias and f" {bias}")
            share = check(ours, query, keys[0], values[0], exact, what)
            times = time_sides(runs, count, size, options.rounds)
            best = {way: min((t[way], n) for n, t in times.items() if n not in ("posattn", "copy"))
                    for way in ("eager", "graph")}  # fmt: skip
            mine, copy = times["posattn"], min(times["copy"].values())
            report.row(
                f"{what}: eager {mine['eager']:.1f} us, best peer {best['eager'][1]} {best['eager'][0]:.1f}; "
                f"graph {mine['graph']:.1f}, {best['graph'][1]} {best['graph'][0]:.1f}, copy {copy:.1f}; "
                f"of copy {copy / mine['graph']:.2f}",
                type=name, D=dim, B=batch, H=heads, kv_heads=kv_heads, keys=length, bias=bias, bytes=size,
                error_of_allowed=share, us=times,
            )  # fmt: skip
            kind = name + (bias and f" {bias}") + (" grouped" if heads != kv_heads else "")
            if length >= _LONG:
                report.ratio(f"{kind} of copy", 0.85, copy / mine["graph"])
            else:
                for way in ("eager", "graph"):
                    report.ratio(f"{kind} below {_LONG} keys, {way}", 1.2, best[way][0] / mine[way])
            del ours, runs, keys, values, added, exact
    report.close()


if __name__ == "__main__":
    main()
