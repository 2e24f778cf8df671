"""Float32 attention of many queries on a GPU, beside PyTorch's efficient kernel.

    ./bazelw build //runtime/c_api:libposattn_cuda.so
    python3 bench/gpu_float32.py bazel-bin/runtime/c_api/libposattn_cuda.so [--out results.jsonl] [--commit C]

needs a GPU, its driver and PyTorch on the machine that it runs on, which need not be the one that built. Both sides'
largest errors against float64 are part of a row. Times are medians over rounds in which they take turns; B * S = 16384
and H * D = 2048. Last comes a line "ratio NAME x.xx goal y.yy" with the lowest single ratio.
"""

import sys

import gpu_report
import posattn_c
import torch
from gpu_attention import CHANNELS, DEVICE, TOKENS, reference, sdpa, take_turns
from gpu_decode import Ours
from torch.nn.attention import SDPBackend


def main():
    options = gpu_report.parser(__doc__, 5, "bazel-bin/runtime/c_api/libposattn_cuda.so").parse_args()
    library = posattn_c.Library(options.library)
    report = gpu_report.Report(options)
    torch.manual_seed(0)
    with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
        for dim in (64, 128):
            for tokens in (512, 1024, 4096, 16384):
                for causal in (False, True):
                    batch, heads = TOKENS // tokens, CHANNELS // dim
                    q, k, v = (torch.randn(batch, heads, tokens, dim, device=DEVICE) for _ in range(3))
                    ours = Ours(library, q, [k], [v], causal=causal)
                    efficient = sdpa(SDPBackend.EFFICIENT_ATTENTION, q, k, v, causal)
                    ours.run(0)
                    some = 2 if tokens <= 4096 else 1  # heads of one batch, for the errors
                    exact, _ = reference(q[:1, :some], k[:1, :some], v[:1, :some], causal, None, torch.float64)
                    errors = {
                        name: (out[:1, :some] - exact).abs().max().item()
                        for name, out in (("posattn", ours.out), ("efficient", efficient()))
                    }
                    if not errors["posattn"] < 1e-5:
                        sys.exit(f"wrong: D {dim} S {tokens} causal {causal}: {errors}")
                    times = take_turns({"posattn": lambda ours=ours: ours.run(0), "efficient": efficient}, options.rounds)
                    flop = 4 * batch * heads * tokens * tokens * dim / (2 if causal else 1)
                    rate = {name: flop / ms / 1e9 for name, ms in times.items()}
                    ratio = times["efficient"] / times["posattn"]
                    report.ratio("float32 of efficient", 1.5, ratio)
                    report.row(
                        f"D {dim} S {tokens} causal {causal}: "
                        + "  ".join(f"{name} {rate[name]:.1f} TFLOP/s, error {errors[name]:.1e}" for name in rate)
                        + f"  ratio {ratio:.2f}",
                        type="float32", D=dim, S=tokens, B=batch, H=heads, causal=causal, ms=times, tflops=rate,
                        errors=errors,
                    )  # fmt: skip
    report.close()


if __name__ == "__main__":
    main()
