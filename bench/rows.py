"""What is compared: every row is one shape, which builds what posattn and its peers need for it."""

import dataclasses
import mmap
import typing

import torch

ROWS = []
GOALS = {}  # name of a ratio -> at least


@dataclasses.dataclass
class Work:
    """All sides of a row, ready to run."""

    posattn: typing.Callable  # computes `out`
    out: torch.Tensor
    peers: dict  # name -> () -> tensor of the shape of out; PyTorch's, the first, is the naive side of the accuracy rule
    # Some of the result in float64, and a function that picks the same part of any side's.
    reference: torch.Tensor
    part: typing.Callable
    amount: float  # floating-point operations, or bytes that must be read
    read: torch.Tensor | None = None  # what is read, where that is the limit
    plain: typing.Callable | None = None  # posattn without the bias
    off: float = 0.0  # by how much posattn's result may be off beyond the rule, of the reference's largest magnitude


@dataclasses.dataclass
class Row:
    group: str  # the name of the ratio against the best peer
    shape: str
    dtype: torch.dtype
    build: typing.Callable  # (library, threads) -> Work
    unit: str = "GFLOP/s"
    quick: bool = False  # also in a quick run
    of_peak: str = ""  # the name of the ratio of what is reached to the machine's own peak
    of_plain: str = ""  # likewise to posattn without the bias

    @property
    def key(self):
        return f"{self.group}, {self.shape}"


def in_huge_pages(tensor):
    """A copy to measure the bandwidth with: in small pages it is read up to a quarter slower."""
    memory = mmap.mmap(-1, tensor.numel() * tensor.itemsize)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=tensor.dtype).copy_(tensor)


def short(dtype):
    return {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]


def add(goal, rows, of_peak=None, of_plain=None):
    """Rows of one group. of_peak, of_plain: goals of those ratios."""
    for row in rows:
        GOALS[row.group] = goal
        if row.of_peak:
            GOALS[row.of_peak] = of_peak
        if row.of_plain:
            GOALS[row.of_plain] = of_plain
        ROWS.append(row)
