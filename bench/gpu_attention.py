"""Attention kernels for tensor cores against cuDNN, FlashAttention-2 and FlexAttention on one GPU.

    ./bazelw build //bench:libgpu_kernels.so      # where the CUDA toolkit's ptxas is, for machine code
    python3 bench/gpu_attention.py bazel-bin/bench/libgpu_kernels.so [--quick] [--out results.jsonl] [--commit C]

needs a GPU, its driver and PyTorch with Triton on the machine that it runs on, which need not be the one that built.
Every kernel is first checked against float64 by the rule of the library's tests. Then ours and the peers' calls take
turns in rounds, each timed by CUDA events over a few calls; numbers are medians over rounds, and ratios those of the
peer's median to ours. Inputs are random normal; B * S = 16384 and H * D = 2048. Last come lines "ratio NAME x.xx goal
y.yy" and the lowest single ratio.
"""

import ctypes
import math
import os
import statistics
import sys
import time

import gpu_report
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

TOKENS, CHANNELS, PAD = 16384, 2048, 256
DEVICE = "cuda"


class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_int64 * 4), ("stride", ctypes.c_int64 * 4)]

    @classmethod
    def of(cls, tensor):
        self = cls()
        if tensor is None:
            return self
        self.data = tensor.data_ptr()
        for i in range(tensor.dim()):
            self.size[i], self.stride[i] = tensor.size(-1 - i), tensor.stride(-1 - i)
        return self


class Attention(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_char_p),
        ("target", ctypes.c_char_p),
        ("is_bfloat", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        *((name, Tensor) for name in ("q", "k", "v", "out", "lse", "offsets", "dense")),
        ("zeros", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("is_causal", ctypes.c_int32),
        ("blocks", ctypes.c_int32),
        ("offset_zero", ctypes.c_int32),
        ("stream", ctypes.c_void_p),
    ]


class Kernels:
    def __init__(self, path):
        self.library = ctypes.CDLL(os.path.abspath(path))
        self.library.gpu_attention.restype = ctypes.c_char_p
        self.library.gpu_attention.argtypes = [ctypes.POINTER(Attention)]
        self.zeros = torch.zeros(4096, device=DEVICE)
        self.multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count

    def prepare(self, kind, target, q, k, v, causal=False, offsets=None, offset_zero=0, dense=None):
        """A function without arguments that launches the kernel, and the tensors that it writes."""
        out = torch.full((*q.shape[:3], v.size(3)), math.nan, dtype=q.dtype, device=DEVICE)
        lse = torch.full(q.shape[:3], math.nan, device=DEVICE)
        call = Attention(
            kind.encode(), target.encode(), q.dtype == torch.bfloat16, q.size(3), Tensor.of(q), Tensor.of(k),
            Tensor.of(v), Tensor.of(out), Tensor.of(lse), Tensor.of(offsets), Tensor.of(dense), self.zeros.data_ptr(),
            1 / math.sqrt(q.size(3)), causal, self.multiprocessors, offset_zero, torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
        kept = (q, k, v, offsets, dense)

        def run(call=call, kept=kept):
            if error := self.library.gpu_attention(ctypes.byref(call)):
                raise RuntimeError(error.decode())
            return out

        return run, out, lse


def reference(q, k, v, causal, bias, dtype):
    """The three-step formula; softmax in float32, or in float64 where everything is."""
    queries, keys = q.size(2), k.size(2)
    repeat = q.size(1) // k.size(1)
    k, v = (x.repeat_interleave(repeat, 1) for x in (k, v))
    scores = (q.to(dtype) @ k.to(dtype).transpose(-1, -2)).to(torch.promote_types(dtype, torch.float32))
    scores = scores / math.sqrt(q.size(3))
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if causal:
        i, j = torch.arange(queries, device=DEVICE)[:, None], torch.arange(keys, device=DEVICE)
        scores = scores.masked_fill(j > i + keys - queries, -math.inf)
    return scores.softmax(-1).nan_to_num(0).to(dtype) @ v.to(dtype), scores.logsumexp(-1)


def tabulated(heads, queries, keys):
    table = torch.randn(heads, queries + keys - 1 + 2 * PAD, device=DEVICE)
    return table, queries - 1 + PAD


def spread(table, zero, queries, keys):
    """The dense bias that a table stands for."""
    offset = torch.arange(keys, device=DEVICE) - torch.arange(queries, device=DEVICE)[:, None]
    return table[:, offset + zero][None]


def wait(what, seconds=5):
    """For the GPU; a kernel that does not end ends the program."""
    done = torch.cuda.Event()
    done.record()
    end = time.monotonic() + seconds
    while not done.query():
        if time.monotonic() > end:
            print(f"hangs: {what}", flush=True)
            os._exit(1)


def check(kernels):
    """Every kernel on odd shapes; the worst error as a share of what is allowed."""
    worst = 0
    for target in ("sm90a", "sm80"):
        for kind in ("prefill_plain", "prefill_offsets", "prefill_dense", "prefill_dense_16", "prefill"):
            if kind == "prefill_dense_16" and target != "sm90a":
                continue
            for dim in (64, 128):
                for dtype in (torch.bfloat16, torch.float16):
                    for heads, queries, keys, causal in ((3, 333, 457, False), (3, 457, 333, True), (4, 640, 640, True)):
                        shape = lambda h, t: torch.randn(2, t, h, dim, device=DEVICE).to(dtype).transpose(1, 2)
                        in_tiles = kind == "prefill_dense_16"
                        keys = (keys + 7) // 8 * 8 if in_tiles else keys  # rows of whole vectors
                        q, k, v = shape(heads, queries), shape(1, keys), shape(1, keys)
                        extra, bias = {}, None
                        if kind == "prefill_offsets":
                            table, zero = tabulated(heads, queries, keys)
                            extra, bias = {"offsets": table, "offset_zero": zero}, spread(table, zero, queries, keys)
                        elif kind != "prefill_plain":
                            bias = torch.randn(2, heads, queries, keys, device=DEVICE)
                            extra["dense"] = bias = bias.to(dtype) if in_tiles else bias
                        run, out, lse = kernels.prepare(kind, target, q, k, v, causal, **extra)
                        run()
                        wait(f"{target} {kind} D {dim} {dtype} {queries} x {keys} causal {causal}")
                        exact, exact_lse = reference(q, k, v, causal, bias, torch.float64)
                        naive, _ = reference(q, k, v, causal, bias, dtype)
                        allowed = 2 * (naive - exact).abs().max().item() + 1e-6
                        share = (out - exact).abs().max().item() / allowed
                        close = torch.allclose(lse.double(), exact_lse, rtol=1e-5, atol=2e-3)
                        if not share <= 1 or not close:
                            sys.exit(f"wrong: {target} {kind} D {dim} {dtype} {queries} x {keys} causal {causal}: {share}")
                        worst = max(worst, share)
    return worst


def take_turns(runs, rounds):
    """Milliseconds of a call of each, by median over rounds."""
    repeats = {}
    for name, run in runs.items():
        run()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        repeats[name] = max(1, min(20, round(2 / begin.elapsed_time(end))))
    times = {name: [] for name in runs}
    order = list(runs.items())
    for _ in range(rounds):
        for name, run in order:
            run()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(repeats[name]):
                run()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) / repeats[name])
        order.reverse()
    return {name: statistics.median(samples) for name, samples in times.items()}


def sdpa(backend, q, k, v, causal, mask=None):
    def run():
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)

    return run


def alibi_of(slopes):
    return lambda score, b, h, i, j: score + slopes[h] * (i - j).abs()


def table_of(table, zero):
    return lambda score, b, h, i, j: score + table[h, j - i + zero]


class Flex:
    """FlexAttention, compiled once for each kind of call."""

    def __init__(self):
        import torch._dynamo
        from torch.nn.attention import flex_attention

        # Beyond its limit of 8 it would run uncompiled.
        for limit in ("recompile_limit", "cache_size_limit"):
            if hasattr(torch._dynamo.config, limit):
                setattr(torch._dynamo.config, limit, 64)
        self.module = flex_attention
        self.compiled = torch.compile(flex_attention.flex_attention, dynamic=False)
        self.masks = {}

    def prepare(self, q, k, v, causal, score_mod=None):
        mask = None
        if causal:
            tokens = q.size(2)
            if tokens not in self.masks:
                self.masks[tokens] = self.module.create_block_mask(
                    lambda b, h, i, j: i >= j, None, None, tokens, tokens, device=DEVICE
                )
            mask = self.masks[tokens]
        return lambda: self.compiled(q, k, v, score_mod=score_mod, block_mask=mask)


def main():
    parser = gpu_report.parser(__doc__, 7, "bazel-bin/bench/libgpu_kernels.so")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, no FlexAttention, bfloat16 alone")
    parser.add_argument("--seconds", type=float, default=600, help="after which no other shape is begun")
    options = parser.parse_args()

    kernels = Kernels(options.library)
    torch.manual_seed(0)
    worst = check(kernels)
    report = gpu_report.Report(options, worst_error=worst)
    print(f"checked; largest error {worst:.2f} of what is allowed", flush=True)

    lengths = (512, 4096) if options.quick else (4096, 512, 1024, 2048, 8192, 16384)
    jobs = [(torch.bfloat16, dim, tokens, causal, False) for tokens in lengths for dim in (64, 128) for causal in (0, 1)]
    if not options.quick:
        # FlexAttention compiles for seconds for each call, so there are fewer of them.
        jobs += [(torch.bfloat16, dim, tokens, causal, True) for tokens in (1024, 4096) for dim in (64, 128) for causal in (0, 1)]
        jobs += [(torch.float16, dim, tokens, causal, False) for tokens in (1024, 4096) for dim in (64, 128) for causal in (0, 1)]
    begin = time.monotonic()
    flex = Flex()
    for dtype, dim, tokens, causal, with_flex in jobs:
        if time.monotonic() - begin > options.seconds:
            print("out of time")
            break
        batch, heads = TOKENS // tokens, CHANNELS // dim
        q, k, v = (torch.randn(batch, heads, tokens, dim, device=DEVICE).to(dtype) for _ in range(3))
        table, zero = tabulated(heads, tokens, tokens)

        def ours(kind, target, q=q, k=k, v=v, causal=causal, **extra):
            return kernels.prepare(kind, target, q, k, v, bool(causal), **extra)[0]

        runs = {"table sm90a": ours("prefill_offsets", "sm90a", offsets=table, offset_zero=zero)}
        if with_flex:
            slopes = torch.arange(1, heads + 1, device=DEVICE) * (-0.25 / heads)
            runs["plain sm90a"] = ours("prefill_plain", "sm90a")
            runs["flex"] = flex.prepare(q, k, v, causal)
            runs["flex alibi"] = flex.prepare(q, k, v, causal, alibi_of(slopes))
            runs["flex table"] = flex.prepare(q, k, v, causal, table_of(table, zero))
            # The same bias as one tensor, causality included; to a dense bias it is the same call.
            mask = spread(table.to(dtype), zero, tokens, tokens)
            if causal:
                mask = mask.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool, device=DEVICE).triu(1), -math.inf)
            runs["cudnn mask"] = sdpa(SDPBackend.CUDNN_ATTENTION, q, k, v, False, mask)
            runs["efficient mask"] = sdpa(SDPBackend.EFFICIENT_ATTENTION, q, k, v, False, mask.expand(batch, -1, -1, -1))
            if not causal:
                runs["dense sm90a"] = ours("prefill_dense_16", "sm90a", dense=mask.expand(batch, -1, -1, -1))
        else:
            runs["plain sm90a"] = ours("prefill_plain", "sm90a")
            runs["plain sm80"] = ours("prefill_plain", "sm80")
            runs["table sm80"] = ours("prefill_offsets", "sm80", offsets=table, offset_zero=zero)
            runs["cudnn"] = sdpa(SDPBackend.CUDNN_ATTENTION, q, k, v, bool(causal))
            runs["flash"] = sdpa(SDPBackend.FLASH_ATTENTION, q, k, v, bool(causal))
        for name in list(runs):
            try:
                runs[name]()
            except Exception as error:  # a peer that does not take this call
                print(f"{name}: {str(error).splitlines()[0][:100]}")
                del runs[name]
        times = take_turns(runs, options.rounds)
        flop = 4 * batch * heads * tokens * tokens * dim / (2 if causal else 1)
        rate = {name: flop / ms / 1e9 for name, ms in times.items()}
        type_name = str(dtype).split(".")[1]
        report.row(
            f"{type_name} D {dim} S {tokens} causal {causal}: " + "  ".join(f"{n} {x:.0f}" for n, x in rate.items()),
            type=type_name, D=dim, S=tokens, B=batch, H=heads, causal=causal, ms=times, tflops=rate,
        )  # fmt: skip
        for title, goal, mine, peers in (
            ("plain/best", 1.05, "plain sm90a", ("cudnn", "flash")),
            ("plain/flex", 1.05, "plain sm90a", ("flex",)),
            ("alibi/best", 1.3, "table sm90a", ("flex alibi", "cudnn mask", "efficient mask")),
            ("table/best", 1.3, "table sm90a", ("flex table", "cudnn mask", "efficient mask")),
            ("sm80/flash", 1.0, "plain sm80", ("flash",)),
            ("dense/cudnn", 1.2, "dense sm90a", ("cudnn mask",)),
        ):
            known = [times[peer] for peer in peers if peer in times]
            if mine in times and known:
                report.ratio(title, goal, min(known) / times[mine])
    report.close()


if __name__ == "__main__":
    main()
