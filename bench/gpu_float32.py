"""Float32 attention of many queries on a GPU, beside PyTorch's efficient kernel.

    ./bazelw build //bench:libgpu_attend.so
    python3 bench/gpu_float32.py bazel-bin/bench/libgpu_attend.so [--out results.jsonl] [--commit C]

needs a GPU, its driver and PyTorch on the machine that it runs on, which need not be the one that built. Both sides'
largest errors against float64 are part of a row. Times are medians over rounds in which they take turns; B * S = 16384
and H * D = 2048. Last comes a line "ratio NAME x.xx goal y.yy" with the lowest single ratio.
"""

import argparse
import datetime
import json
import math
import sys

import posattn_c
import torch
from gpu_attention import CHANNELS, DEVICE, TOKENS, driver_version, reference, sdpa, take_turns
from gpu_decode import Ours
from torch.nn.attention import SDPBackend


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="append rows to this file")
    parser.add_argument("--commit", default="", help="of the library, for the rows")
    options = parser.parse_args()

    library = posattn_c.Library(options.library)
    rows = [{
        "kind": "run", "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_properties(0).name, "driver": driver_version(), "torch": torch.__version__,
        "commit": options.commit, "command": "python3 bench/gpu_float32.py bazel-bin/bench/libgpu_attend.so",
    }]  # fmt: skip
    print(json.dumps(rows[0]), flush=True)
    torch.manual_seed(0)
    ratios = []
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
                    ratios.append(times["efficient"] / times["posattn"])
                    rows.append({"kind": "row", "type": "float32", "D": dim, "S": tokens, "B": batch, "H": heads,
                                 "causal": causal, "ms": times, "tflops": rate, "errors": errors})  # fmt: skip
                    print(f"D {dim} S {tokens} causal {causal}: " + "  ".join(
                        f"{name} {rate[name]:.1f} TFLOP/s, error {errors[name]:.1e}" for name in rate)
                        + f"  ratio {ratios[-1]:.2f}", flush=True)  # fmt: skip
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    rows.append({"kind": "ratio", "name": "float32 of efficient", "mean": mean, "lowest": min(ratios), "goal": 1.5})
    print(f"ratio float32 of efficient {mean:.2f} goal 1.50 (lowest {min(ratios):.2f})")
    if options.out:
        with open(options.out, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
