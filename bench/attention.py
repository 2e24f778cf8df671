"""Rows of attention over whole sequences: full, causal, and with a positional bias, which peers get as a mask."""

import torch

import backends
import posattn_c
from rows import Row, Work, add, short

_LENGTHS = (128, 512, 1024, 2048, 4096, 8192, 16384)
_BIAS_LENGTHS = (128, 512, 2048, 4096)  # a peer's mask of 4096 takes as many MB as everything else together


def heads_of(head_dim, length):
    """512 channels, but fewer where one head is work enough for every thread and minutes for all of them."""
    return 512 // head_dim // (1 if length <= 8192 else 4)


def reference(q, k, v, rows, bias, causal):
    """softmax(q k^T / sqrt(d) + bias) v for some rows of queries, in float64."""
    scores = q[:, :, rows].double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    if bias is not None:
        scores += bias[..., rows, :].double()
    if causal:
        hidden = torch.arange(k.shape[2]) > rows[:, None] + (k.shape[2] - q.shape[2])
        scores.masked_fill_(hidden, float("-inf"))
    return torch.softmax(scores, -1) @ v.double()


def some_rows(length):
    """Of queries: enough to see every block of a kernel, few enough for float64."""
    return torch.unique(torch.linspace(0, length - 1, min(length, 96 if length <= 2048 else 24)).round().long())


def _attention(head_dim, length, causal, dtype, make_bias=None):
    """make_bias: (heads, length) -> (branches of posattn, the same as a tensor for the peers)."""

    def build(library, threads):
        heads = heads_of(head_dim, length)
        q, k, v = (torch.randn(1, heads, length, head_dim).to(dtype) for _ in range(3))
        branches, bias = make_bias(heads, length) if make_bias else ([], None)
        ours = posattn_c.Attend(library, q, k, v, branches=branches, causal=causal)
        plain = posattn_c.Attend(library, q, k, v, causal=causal).run if make_bias else None
        rows = some_rows(length)
        exact = reference(q, k, v, rows, bias, causal)
        if bias is not None and causal:  # peers take one or the other
            bias.masked_fill_(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
        mask = None if bias is None else bias.to(dtype)
        peers = backends.attention(q, k, v, mask, causal and bias is None, threads)
        flops = 4 * heads * length**2 * head_dim / (2 if causal else 1)
        return Work(ours.run, ours.out, peers, exact, lambda out: out[:, :, rows], flops, plain=plain)

    return build


def _offsets(length):
    return torch.arange(length)[:, None] - torch.arange(length)


def _relative(heads, length):
    """One row for all heads, which peers broadcast; the table reaches half of the length."""
    reach = length // 2
    table = torch.randn(2 * reach + 1)
    bias = -table[_offsets(length).clamp(-reach, reach) + reach]
    return [(posattn_c.RELATIVE, table, {"sign": posattn_c.MINUS})], bias[None, None]


def _alibi(heads, length):
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
    bias = -slopes[:, None, None] * _offsets(length).abs()
    return [(posattn_c.ALIBI, slopes, {})], bias[None]


def _t5_bucket(offset, buckets=32, max_distance=128):
    """Of the T5 model, bidirectional; offset = key - query."""
    half = buckets // 2
    exact = half // 2
    distance = offset.abs()
    ratio = torch.log(distance.clamp(min=1).double() / exact) / torch.log(torch.tensor(max_distance / exact).double())
    far = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(offset > 0, half, 0) + torch.where(distance < exact, distance, far)


def _t5(heads, length):
    table = torch.randn(32, heads)
    bias = table[_t5_bucket(-_offsets(length))].permute(2, 0, 1)[None].contiguous()
    return [(posattn_c.T5, table, {"max_distance": 128, "bidirectional": 1})], bias


def _quick(name, dtype, head_dim, length):
    if head_dim != 64 or length not in (512, 2048):
        return False
    return name in ("full", "full D64", "causal", "causal D64") or (length == 512 and dtype == torch.float32)


def _rows(name, causal, dtype, head_dims, lengths, make_bias=None):
    group = f"{short(dtype)} {name}"
    for head_dim in head_dims:
        for length in lengths:
            fast = dtype == torch.float32 and not causal and not make_bias and length >= 512
            yield Row(
                group,
                f"D{head_dim} S{length} H{heads_of(head_dim, length)}",
                dtype,
                _attention(head_dim, length, causal, dtype, make_bias),
                quick=_quick(name, dtype, head_dim, length),
                of_peak="f32 full, of the FMA peak" if fast else "",
                of_plain=f"{group}, of the same without" if make_bias else "",
            )


def _add():
    for dtype, goals in ((torch.float32, ((1.2, 1.2), (1.5, 1.5))), (torch.bfloat16, ((2.5, 2.0), (3.0, 2.5)))):
        for causal, by_dim in zip((False, True), goals):
            name = "causal" if causal else "full"
            if dtype == torch.float32:
                add(by_dim[0], _rows(name, causal, dtype, (64, 128), _LENGTHS), of_peak=0.85)
            else:
                for head_dim, goal in zip((64, 128), by_dim):
                    add(goal, _rows(f"{name} D{head_dim}", causal, dtype, (head_dim,), _LENGTHS))
    for dtype in (torch.float32, torch.bfloat16):
        for name, make_bias in (("relative", _relative), ("alibi", _alibi), ("t5", _t5)):
            for causal in (False, True):
                rows = _rows(name + (" causal" if causal else ""), causal, dtype, (64, 128), _BIAS_LENGTHS, make_bias)
                add(2.0, rows, of_plain=0.95)


_add()
