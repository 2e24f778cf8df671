"""Rows of ESPnet's speech language model: a token at a time through its MultiHeadAttention, with its cache."""

import copy
import importlib.util
import pathlib
import sys
import types

import torch

import layers
from rows import Row, Work, add, in_huge_pages, short

_EMBED_DIM, _HEADS, _CACHED = 1024, 16, 2048


def _espnet():
    """Two files of the installed espnet, without the packages around them, which need much that is not used here."""
    import espnet2

    root = pathlib.Path(espnet2.__path__[0])
    for package in ("espnet2.speechlm", "espnet2.speechlm.module", "espnet2.speechlm.core_lm"):
        sys.modules.setdefault(package, types.ModuleType(package))
    core = types.ModuleType("espnet2.speechlm.core_lm.abs_core_lm")
    core.SpeechLMInferenceOptions = object
    sys.modules[core.__name__] = core

    def load(name):
        if name not in sys.modules:
            path = root.joinpath(*name.split(".")[1:]).with_suffix(".py")
            spec = importlib.util.spec_from_file_location(name, path)
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]

    return load("espnet2.speechlm.module.transformer"), load("espnet2.speechlm.net_utils")


def _decoder(layer, utils, prefix):
    """A function that decodes one token after `prefix`, the same one each time."""
    cache, _ = utils.install_kv_cache_hook(layer, {})
    layer(prefix, kv_cache=cache)
    start = dict(cache)

    def step(x):
        cache.update(start)
        return layer(x, kv_cache=cache)

    return step


def _decode(dtype, int8=False):
    """Against the original in this type and in float32. int8: with posattn's cache of 8-bit integers."""

    def build(library, threads):
        transformer, utils = _espnet()
        original = transformer.MultiHeadAttention(_EMBED_DIM, _HEADS).eval().to(dtype)
        ours = layers.load(library, original, _HEADS, "none", dtype)
        prefix, x = (torch.randn(1, length, _EMBED_DIM).to(dtype) for length in (_CACHED, 1))
        exact = _decoder(copy.deepcopy(original).double(), utils, prefix.double())(x.double())
        in_f32 = _decoder(copy.deepcopy(original).float(), utils, prefix.float())
        theirs = _decoder(original, utils, prefix)
        peers = {"espnet": lambda: theirs(x)}
        if dtype != torch.float32:
            peers["espnet, f32"] = lambda: in_f32(x.float())
        run, out = ours.decoding(prefix, x, int8)
        weights = sum(parameter.numel() for parameter in original.parameters())
        row = _EMBED_DIM + 4 * _HEADS if int8 else dtype.itemsize * _EMBED_DIM
        amount = dtype.itemsize * weights + 2 * _CACHED * row
        read = in_huge_pages(torch.randn(amount // 4))
        off = 0.02 if int8 else 0.0
        return Work(run, out, peers, exact, lambda result: result, amount, read=read, off=off)

    return build


for _dtype, _goal in ((torch.float32, 2.0), (torch.bfloat16, 3.5)):
    _group = f"{short(_dtype)} ESPnet decoding"
    _shape = f"E{_EMBED_DIM} H{_HEADS} S{_CACHED}"
    add(_goal, [Row(_group, _shape, _dtype, _decode(_dtype), unit="GB/s", quick=True)])
    add(_goal, [Row(_group + ", int8 cache", _shape, _dtype, _decode(_dtype, int8=True), unit="GB/s")])
