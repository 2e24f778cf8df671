"""What is compared: every row is one shape, which builds what PyTorch and posattn need for it."""

import dataclasses
import typing

import torch
import torch.nn.functional as F

import posattn_c

GROUPS = {}  # name -> Group


@dataclasses.dataclass
class Work:
    """Both sides of a row, ready to run."""

    pytorch: typing.Callable  # () -> tensor
    posattn: typing.Callable  # computes `out`
    out: torch.Tensor
    # Some of the result in float64, and a function that picks the same part of either side's.
    reference: torch.Tensor
    part: typing.Callable
    amount: float  # floating-point operations, or bytes that must be read
    read: torch.Tensor | None = None  # what is read, where that is the limit


@dataclasses.dataclass
class Row:
    group: str
    shape: str
    build: typing.Callable  # (library) -> Work
    quick: bool = False  # also in a quick run


@dataclasses.dataclass
class Group:
    goal: float  # how many times PyTorch's speed
    unit: str
    rows: list


def add(group, goal, unit, rows):
    GROUPS[group] = Group(goal, unit, rows)


def _heads(head_dim):
    return 512 // head_dim


def _reference(q, k, v, rows, bias, causal):
    """softmax(q k^T / sqrt(d) + bias) v for some rows of queries, in float64."""
    scores = q[:, :, rows].double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    if bias is not None:
        scores += bias[..., rows, :].double()
    if causal:
        hidden = torch.arange(k.shape[2]) > rows[:, None] + (k.shape[2] - q.shape[2])
        scores.masked_fill_(hidden, float("-inf"))
    return torch.softmax(scores, -1) @ v.double()


def _some_rows(length):
    """Of queries: enough to see every block of a kernel, few enough for float64."""
    return torch.unique(torch.linspace(0, length - 1, min(length, 96)).round().long())


def _attention(head_dim, length, causal, make_bias=None):
    """make_bias: (heads, length) -> (branches of posattn, the same as a tensor for PyTorch)."""

    def build(library):
        heads = _heads(head_dim)
        q, k, v = (torch.randn(1, heads, length, head_dim) for _ in range(3))
        branches, bias = make_bias(heads, length) if make_bias else ([], None)
        ours = posattn_c.Attend(library, q, k, v, branches=branches, causal=causal)
        rows = _some_rows(length)
        reference = _reference(q, k, v, rows, bias, causal)
        if bias is not None and causal:  # PyTorch takes one or the other
            bias.masked_fill_(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))

        def pytorch():
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal and bias is None)

        flops = 4 * heads * length**2 * head_dim / (2 if causal else 1)
        return Work(pytorch, ours.run, ours.out, reference, lambda out: out[:, :, rows], flops)

    return build


def _relative_bias(heads, length):
    """One row for all heads, which PyTorch broadcasts; the table reaches half of the length."""
    reach = length // 2
    table = torch.randn(2 * reach + 1)
    offset = torch.arange(length)[:, None] - torch.arange(length)
    bias = -table[offset.clamp(-reach, reach) + reach]
    return [(posattn_c.RELATIVE, table, posattn_c.MINUS)], bias[None, None]


def _alibi_bias(heads, length):
    """A slope for each head, so that PyTorch's tensor has all heads."""
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
    offset = torch.arange(length)[:, None] - torch.arange(length)
    bias = -slopes[:, None, None] * offset.abs()
    return [(posattn_c.ALIBI, slopes, 0)], bias[None]


def _attention_rows(group, causal, make_bias=None):
    return [
        Row(
            group,
            f"D{head_dim} S{length} H{_heads(head_dim)}",
            _attention(head_dim, length, causal, make_bias),
            quick=head_dim == 64 and length in (512, 2048),
        )
        for head_dim in (64, 128)
        for length in (128, 512, 1024, 2048, 4096)
    ]


for _group, _goal, _causal, _bias in (
    ("full", 1.0, False, None),
    ("causal", 1.3, True, None),
    ("relative", 1.3, False, _relative_bias),
    ("relative causal", 1.3, True, _relative_bias),
    ("alibi", 1.3, False, _alibi_bias),
    ("alibi causal", 1.3, True, _alibi_bias),
):
    add(_group, _goal, "GFLOP/s", _attention_rows(_group, _causal, _bias))


def _decode(head_dim, length, heads):
    """One query against keys that lie in a cache."""

    def build(library):
        q = torch.randn(1, heads, 1, head_dim)
        k, v = (torch.randn(1, heads, length, head_dim) for _ in range(2))
        ours = posattn_c.Attend(library, q, k, v, cache=posattn_c.Cache(library, k, v))
        reference = _reference(q, k, v, torch.tensor([0]), None, False)
        return Work(
            lambda: F.scaled_dot_product_attention(q, k, v),
            ours.run,
            ours.out,
            reference,
            lambda out: out,
            4 * (k.numel() + v.numel()),
            read=torch.cat([k.flatten(), v.flatten()]),
        )

    return build


add(
    "decode",
    1.0,
    "GB/s",
    [Row("decode", f"D{head_dim} S16384 H8", _decode(head_dim, 16384, 8), quick=True) for head_dim in (64, 128)],
)
