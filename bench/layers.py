"""Rows of whole layers: the original classes, eager and compiled, and posattn with their weights."""

import copy
import pathlib
import tempfile

import torch

import posattn_c
import safetensors_file
from rows import Row, Work, add, short


def _originals():
    """Name -> (positions for posattn, a function that makes the class). symm-learning takes a while to import."""
    from symm_learning.nn import activation as symm

    return {
        "MultiheadAttention": ("none", lambda e, h, t: torch.nn.MultiheadAttention(e, h, batch_first=True)),
        "AdditivePos": ("additive", lambda e, h, t: symm.AdditivePosMultiheadAttention(e, h, max_len=t)),
        "AdditiveRel": ("relative", lambda e, h, t: symm.AdditiveRelMultiheadAttention(e, h, max_distance=t)),
        "RoPE": ("rope", lambda e, h, t: symm.RoPEMultiheadAttention(e, h)),
    }


_NAMES = ("MultiheadAttention", "AdditivePos", "AdditiveRel", "RoPE")


def _make_original(name, embed_dim, heads, length):
    positions, make = _originals()[name]
    layer = make(embed_dim, heads, length).eval()
    for key, parameter in layer.named_parameters():
        if key in ("pos_emb", "rel_bias") or key.endswith("bias"):  # they start as zeros
            torch.nn.init.normal_(parameter, std=0.5)
    return positions, layer


def load(library, layer, heads, positions, dtype):
    """posattn's layer with the weights of a module."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "layer.safetensors"
        safetensors_file.save(path, layer.state_dict())
        return posattn_c.Layer(library, path, heads, positions, dtype)


def _layer(name, batch, length, embed_dim, heads, dtype):
    def build(library, threads):
        positions, original = _make_original(name, embed_dim, heads, length)
        original = original.to(dtype)
        ours = load(library, original, heads, positions, dtype)
        x = torch.randn(batch, length, embed_dim).to(dtype)
        run, out = ours.self_attention(x)
        some = torch.tensor([0, batch // 2, batch - 1])
        few = x[some].double()
        exact = copy.deepcopy(original).double()(few, few, few, need_weights=False)[0]
        compiled = torch.compile(original)
        return Work(
            run,
            out,
            {
                "pytorch": lambda: original(x, x, x, need_weights=False)[0],
                "torch.compile": lambda: compiled(x, x, x, need_weights=False)[0],
            },
            exact,
            lambda result: result[some],
            8 * batch * length * embed_dim**2 + 4 * batch * length**2 * embed_dim,
        )

    return build


def _rows(batch, length, embed_dim, heads, dtype):
    group = f"{short(dtype)} layer B{batch} T{length} E{embed_dim} H{heads}"
    for name in _NAMES:
        build = _layer(name, batch, length, embed_dim, heads, dtype)
        yield Row(group, name, dtype, build, quick=name == "AdditiveRel" and dtype == torch.float32)


add(1.5, _rows(4, 512, 512, 8, torch.float32))
add(2.0, _rows(4, 512, 512, 8, torch.bfloat16))
add(1.15, _rows(512, 15, 768, 6, torch.float32))
add(2.0, _rows(512, 15, 768, 6, torch.bfloat16))
