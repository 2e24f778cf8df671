"""Rows of whole layers: the original classes, and posattn with their weights."""

import copy
import pathlib
import tempfile

import torch

import posattn_c
import safetensors_file
from rows import Row, Work, add


def _originals():
    """Name -> (positions for posattn, a function that makes the class). symm-learning takes a while to import."""
    from symm_learning.nn import activation as symm

    return {
        "MultiheadAttention": ("none", lambda e, h, t: torch.nn.MultiheadAttention(e, h, batch_first=True)),
        "AdditivePos": ("additive", lambda e, h, t: symm.AdditivePosMultiheadAttention(e, h, max_len=t)),
        "AdditiveRel": ("relative", lambda e, h, t: symm.AdditiveRelMultiheadAttention(e, h, max_distance=t)),
        "RoPE": ("rope", lambda e, h, t: symm.RoPEMultiheadAttention(e, h)),
    }


def _make_original(name, embed_dim, heads, length):
    positions, make = _originals()[name]
    layer = make(embed_dim, heads, length).eval()
    for key, parameter in layer.named_parameters():
        if key in ("pos_emb", "rel_bias") or key.endswith("bias"):  # they start as zeros
            torch.nn.init.normal_(parameter, std=0.5)
    return positions, layer


def _layer(name, batch, length, embed_dim, heads):
    def build(library):
        positions, original = _make_original(name, embed_dim, heads, length)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "layer.safetensors"
            safetensors_file.save(path, original.state_dict())
            ours = posattn_c.Layer(library, path, heads, positions)
        x = torch.randn(batch, length, embed_dim)
        run, out = ours.self_attention(x)
        some = torch.tensor([0, batch // 2, batch - 1])
        exact = copy.deepcopy(original).double()
        few = x[some].double()
        return Work(
            lambda: original(x, x, x, need_weights=False)[0],
            run,
            out,
            exact(few, few, few, need_weights=False)[0],
            lambda result: result[some],
            8 * batch * length * embed_dim**2 + 4 * batch * length**2 * embed_dim,
        )

    return build


def _rows(group, batch, length, embed_dim, heads):
    quick = ("MultiheadAttention", "AdditiveRel")
    return [
        Row(group, name, _layer(name, batch, length, embed_dim, heads), quick=name in quick)
        for name in ("MultiheadAttention", "AdditivePos", "AdditiveRel", "RoPE")
    ]


add("layer B4 T512 E512 H8", 1.3, "GFLOP/s", _rows("layer B4 T512 E512 H8", 4, 512, 512, 8))
add("layer B512 T15 E768 H6", 1.0, "GFLOP/s", _rows("layer B512 T15 E768 H6", 512, 15, 768, 6))
