"""Whole layers with rotary positions on one GPU: posattn's, and the same in PyTorch, eager and compiled.

    ./bazelw build //runtime/c_api:libposattn_cuda.so
    python3 bench/gpu_layers.py bazel-bin/runtime/c_api/libposattn_cuda.so [--out results.jsonl] [--commit C]

needs a GPU, its driver, cuBLASLt and PyTorch with Triton. The peer is symm_learning.nn's RoPEMultiheadAttention where that is
installed, and otherwise the same layer (three projections, interleaved rotation, scaled_dot_product_attention, output
projection). Every layer is first checked against float64. Then ours and the peers' calls take turns in rounds, each timed by
CUDA events over a few calls in a row; numbers are medians over rounds. "graph" is the same call replayed from a CUDA graph
(for PyTorch, mode "reduce-overhead" of torch.compile). PyTorch's float32 is without tf32, and ours may err by twice as much
as that. Last come lines "ratio NAME x.xx goal y.yy" with the best peer's time over ours.
"""

import copy
import pathlib
import statistics
import sys
import tempfile
import time

import torch
import torch.nn.functional as F

import gpu_report
import posattn_c
import safetensors_file
from gpu_attention import take_turns

DEVICE = "cuda"


class Rope(torch.nn.Module):
    """What symm-learning's class computes with its default arguments."""

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (torch.nn.Linear(embed_dim, embed_dim) for _ in range(4))

    def rotated(self, x, cos, sin):
        x = x.unflatten(-1, (-1, 2))
        even, odd = x[..., 0], x[..., 1]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)

    def forward(self, query, key, value, need_weights=False):
        split = lambda x: x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        q, k, v = split(self.q_proj(query)), split(self.k_proj(key)), split(self.v_proj(value))
        wide = torch.promote_types(query.dtype, torch.float32)
        frequencies = 10000.0 ** (-torch.arange(0, self.head_dim, 2, device=query.device, dtype=wide) / self.head_dim)
        angles = torch.arange(query.shape[1], device=query.device, dtype=wide)[:, None] * frequencies
        cos, sin = angles.cos().to(query.dtype), angles.sin().to(query.dtype)
        out = F.scaled_dot_product_attention(self.rotated(q, cos, sin), self.rotated(k, cos, sin), v)
        return self.out_proj(out.transpose(1, 2).flatten(-2)), None


def make_peer(embed_dim, num_heads):
    try:
        from symm_learning.nn.activation import RoPEMultiheadAttention
    except ImportError:
        return "the same layer in PyTorch", Rope(embed_dim, num_heads)
    return "symm-learning", RoPEMultiheadAttention(embed_dim, num_heads)


def as_graph(run, stream):
    run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph.replay


def host_microseconds(run, count=200):
    torch.cuda.synchronize()
    samples = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(count // 5):
            run()
        samples.append((time.perf_counter() - begin) / (count // 5) * 1e6)
        torch.cuda.synchronize()
    return statistics.median(samples)


def main():
    parser = gpu_report.parser(__doc__, 9, "bazel-bin/runtime/c_api/libposattn_cuda.so")
    parser.add_argument("--only-ours", action="store_true", help="check and time posattn alone")
    options = parser.parse_args()

    library = posattn_c.Library(options.library)
    torch.manual_seed(0)
    report = gpu_report.Report(options, peer=make_peer(8, 1)[0])
    stream = torch.cuda.current_stream()
    graph_stream = torch.cuda.Stream()
    for batch, tokens, embed_dim, heads, goal in ((8, 1024, 512, 8, 1.2), (512, 15, 768, 6, 1.5)):
        for dtype in (torch.bfloat16, torch.float32):
            peer = make_peer(embed_dim, heads)[1].to(DEVICE, dtype).eval().requires_grad_(False)
            x = torch.randn(batch, tokens, embed_dim, device=DEVICE).to(dtype)
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "layer.safetensors"
                safetensors_file.save(path, {name: value.cpu() for name, value in peer.state_dict().items()})
                ours, graph_ours = (
                    posattn_c.Layer(library, path, heads, "rope", dtype, stream=s) for s in (stream, graph_stream)
                )
            run, out = ours.self_attention(x)
            torch.cuda.synchronize()
            graph_run, graph_out = graph_ours.self_attention(x)
            replay = as_graph(graph_run, graph_stream)
            run(), replay()
            few = x[[0, batch // 2, batch - 1]]
            exact = copy.deepcopy(peer).double()(few.double(), few.double(), few.double(), need_weights=False)[0]
            naive = peer(few, few, few, need_weights=False)[0]
            allowed = 2 * (naive.double() - exact).abs().max().item() + 1e-6
            name = f"{str(dtype).split('.')[1]} B{batch} T{tokens} E{embed_dim} H{heads}"
            torch.cuda.synchronize()
            for result in (out, graph_out):
                error = (result[[0, batch // 2, batch - 1]].double() - exact).abs().max().item()
                if not error <= allowed:
                    sys.exit(f"wrong: {name}: error {error}, allowed {allowed}")
            runs = {"posattn": run, "posattn graph": replay}
            if not options.only_ours:
                call = lambda layer, x=x: lambda: layer(x, x, x, need_weights=False)
                runs["eager"] = call(peer)
                runs["compiled"] = call(torch.compile(peer, dynamic=False))
                runs["compiled graph"] = call(torch.compile(copy.deepcopy(peer), dynamic=False, mode="reduce-overhead"))
                for peer_run in list(runs.values())[2:]:
                    for _ in range(4):
                        peer_run()
            times = take_turns(runs, options.rounds)
            flop = 8 * batch * tokens * embed_dim**2 + 4 * batch * tokens**2 * embed_dim
            host_us = host_microseconds(run)
            report.row(
                f"{name}: "
                + "  ".join(f"{n} {ms * 1e3:.1f} us ({flop / ms / 1e9:.0f} TFLOP/s)" for n, ms in times.items())
                + f"\n  host {host_us:.0f} us a call; error {error:.2e} of {allowed:.2e} allowed",
                name=name, ms=times, error=error, allowed=allowed, host_us={"posattn": host_us},
            )  # fmt: skip
            if options.only_ours:
                continue
            for title, mine, theirs in (
                (name, "posattn", min(times["eager"], times["compiled"])),
                (name + " graph", "posattn graph", min(times["eager"], times["compiled"], times["compiled graph"])),
            ):
                report.ratio(title, goal, theirs / times[mine])
    report.close()


if __name__ == "__main__":
    main()
