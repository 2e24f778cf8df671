"""Rows of decoding: one query against keys and values that lie in a cache."""

import torch

import attention
import backends
import posattn_c
from rows import Row, Work, add, short

_HEADS = 8
_IN_MEMORY_BYTES = 100e6  # beyond the caches of most machines


def _decode(head_dim, length, dtype):
    def build(library, threads):
        q = torch.randn(1, _HEADS, 1, head_dim).to(dtype)
        k, v = (torch.randn(1, _HEADS, length, head_dim).to(dtype) for _ in range(2))
        ours = posattn_c.Attend(library, q, k, v, cache=posattn_c.Cache(library, k, v))
        exact = attention.reference(q, k, v, torch.tensor([0]), None, False)
        return Work(
            ours.run,
            ours.out,
            backends.attention(q, k, v, None, False, threads),
            exact,
            lambda out: out,
            k.element_size() * (k.numel() + v.numel()),
            read=torch.cat([k.flatten(), v.flatten()]).view(torch.float32),
        )

    return build


def _rows(dtype):
    for head_dim in (64, 128):
        for length in (1024, 4096, 16384, 65536):
            in_memory = 2 * _HEADS * length * head_dim * dtype.itemsize > _IN_MEMORY_BYTES
            yield Row(
                f"{short(dtype)} decode",
                f"D{head_dim} S{length} H{_HEADS}",
                dtype,
                _decode(head_dim, length, dtype),
                unit="GB/s",
                quick=head_dim == 128 and length in (1024, 65536),
                of_peak=f"{short(dtype)} decode, of the read bandwidth" if in_memory else "",
            )


for _dtype in (torch.float32, torch.bfloat16):
    add(1.2, _rows(_dtype), of_peak=0.9)
