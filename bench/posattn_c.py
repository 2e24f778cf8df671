"""libposattn.so through ctypes: posattn.h as Python sees it. Tensors are torch's, and are not copied."""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p

import torch

_ABI_VERSION = 3
_DTYPES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.float64: 3,
    torch.int64: 4,
    torch.int32: 5,
    torch.bool: 6,
}
CAUSAL_BOTTOM_RIGHT = 1
RELATIVE, ALIBI, T5 = 1, 2, 3
MINUS, PLUS = 0, 1


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int32),
        ("rank", c_int32),
        ("shape", c_int64 * 5),
        ("stride", c_int64 * 5),
    ]

    @staticmethod
    def of(tensor):
        """The same memory, which must outlive the result."""
        view = Tensor(tensor.data_ptr(), _DTYPES[tensor.dtype], tensor.dim())
        for d in range(tensor.dim()):
            view.shape[d], view.stride[d] = tensor.shape[d], tensor.stride(d)
        return view


def _tensors(*names):
    return [(name, Tensor) for name in names]


class Options(ctypes.Structure):
    _fields_ = (
        _tensors("keep_mask", "block_mask", "add_mask", "dense_bias")
        + _tensors("key_keep_mask", "key_block_mask", "key_add_mask", "key_lengths")
        + _tensors("q_positions", "k_positions", "q_position_mask", "k_position_mask")
        + [("window_left", c_int64), ("window_right", c_int64), ("causal", c_int32), ("need_weights", c_int32)]
        + [("has_scale", c_int32), ("scale", c_float), ("softcap", c_float)]
    )


class Branch(ctypes.Structure):
    _fields_ = [
        ("kind", c_int32),
        ("sign", c_int32),
        ("table", Tensor),
        ("max_distance", c_int64),
        ("bidirectional", c_int32),
        ("num_inputs", c_int32),
        ("name", c_char_p),
        ("inputs", c_void_p),
    ]


class AttendArgs(ctypes.Structure):
    _fields_ = _tensors("query", "key", "value", "out", "lse", "weights") + [
        ("cache", c_void_p),
        ("branches", POINTER(Branch)),
        ("num_branches", c_int32),
        ("rope_layout", c_int32),
        ("rope_inv_freq", Tensor),
        ("options", Options),
    ]


class LayerOptions(ctypes.Structure):
    _fields_ = [
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("positions", c_char_p),
        ("rope_base", c_double),
        ("rope_dim", c_int64),
        ("t5_max_distance", c_int64),
        ("sinusoidal_base", c_double),
        ("dtype", c_int32),
        ("add_zero_attn", c_int32),
        ("relative_sign", c_int32),
        ("rope_layout", c_int32),
        ("t5_bidirectional", c_int32),
        ("sinusoidal_halves", c_int32),
        ("device", c_int32),
        ("stream", c_void_p),
    ]


class ForwardArgs(ctypes.Structure):
    _fields_ = _tensors("query", "key", "value", "out", "lse", "weights") + [
        ("cache", c_void_p),
        ("scratch", c_void_p),
        ("options", Options),
        ("stream", c_void_p),
        ("workspace", c_void_p),
        ("workspace_size", c_size_t),
    ]


class Error(Exception):
    """What posattn_last_error() said."""


class Library:
    def __init__(self, path):
        self._c = ctypes.CDLL(str(path))
        for name in ("version", "last_error"):
            getattr(self._c, "posattn_" + name).restype = c_char_p
        if self._c.posattn_abi_version() != _ABI_VERSION:
            raise Error(f"{path}: another version of posattn.h")
        self.version = self._c.posattn_version().decode()

    def call(self, name, *args):
        if getattr(self._c, "posattn_" + name)(*args) != 0:
            raise Error(f"{name}: {self._c.posattn_last_error().decode()}")

    def init(self, struct, name):
        """A struct with its defaults."""
        getattr(self._c, f"posattn_{name}_init")(byref(struct))
        return struct

    def free(self, kind, handle):
        getattr(self._c, f"posattn_{kind}_free")(handle)

    def set_num_threads(self, count):
        self.call("set_num_threads", c_int(count))

    def set_target(self, name):
        self.call("set_target", c_char_p(name.encode()))

    def current_target(self):
        name = c_char_p()
        self.call("current_target", byref(name))
        return name.value.decode()

    def run(self, keep, name, *args):
        """A function of no arguments that makes this call: as little Python as can be, for timing.

        It keeps `keep` alive, whose memory the arguments point at.
        """
        function, last_error = getattr(self._c, "posattn_" + name), self._c.posattn_last_error

        def call(_keep=keep):
            if function(*args) != 0:
                raise Error(f"{name}: {last_error().decode()}")

        return call


class Attend:
    """One call of posattn_attend, with its workspace allocated once. Call run() to compute out.

    branches: (kind, table, {field of Branch: value}).
    """

    def __init__(self, library, query, key, value, *, branches=(), causal=False, cache=None):
        value_dim = value.shape[-1]
        self.out = torch.full((*query.shape[:3], value_dim), float("nan"), dtype=query.dtype)
        c_branches = (Branch * max(len(branches), 1))()
        for branch, (kind, table, options) in zip(c_branches, branches):
            branch.kind, branch.table = kind, Tensor.of(table)
            for name, option in options.items():
                setattr(branch, name, option)
        args = library.init(AttendArgs(), "attend_args")
        args.query, args.out = Tensor.of(query), Tensor.of(self.out)
        if cache:
            args.cache = cache.handle
        else:
            args.key, args.value = Tensor.of(key), Tensor.of(value)
        args.branches, args.num_branches = c_branches, len(branches)
        args.options.causal = CAUSAL_BOTTOM_RIGHT if causal else 0
        size = c_size_t()
        library.call("attend_workspace_size", byref(args), byref(size))
        workspace = torch.empty(size.value + 64, dtype=torch.uint8)
        keep = [query, key, value, cache, self.out, workspace, c_branches, *(table for _, table, _ in branches)]
        aligned = (workspace.data_ptr() + 63) // 64 * 64
        self.run = library.run(keep, "attend", byref(args), c_void_p(aligned), size)


class Cache:
    """A KvCache that holds these keys and values."""

    def __init__(self, library, key, value):
        self._library, self.handle = library, c_void_p()
        batch, heads, length, head_dim = key.shape
        sizes = (batch, heads, head_dim, value.shape[-1], length)
        library.call("cache_create", *map(c_int64, sizes), c_int(_DTYPES[key.dtype]), byref(self.handle))
        library.call("cache_append", self.handle, byref(Tensor.of(key)), byref(Tensor.of(value)))

    def __del__(self):
        self._library.free("cache", self.handle)


class Layer:
    """A layer of a safetensors file. positions: "none", "additive", "relative+rope", ...

    stream: a torch.cuda.Stream for a layer on its GPU, whose calls go there; None for one on the CPU.
    """

    def __init__(self, library, path, num_heads, positions, dtype=torch.float32, stream=None):
        self._library, self._layer, self._scratch = library, c_void_p(), c_void_p()
        self._stream = stream
        options = library.init(LayerOptions(), "layer_options")
        options.num_heads, options.positions, options.dtype = num_heads, positions.encode(), _DTYPES[dtype]
        if stream:
            options.device, options.stream = 1, stream.cuda_stream
        library.call("layer_load", str(path).encode(), None, byref(options), byref(self._layer))
        if not stream:
            library.call("scratch_create", byref(self._scratch))

    def __del__(self):
        self._library.free("layer", self._layer)
        self._library.free("scratch", self._scratch)

    def self_attention(self, x):
        """(run, out): run() computes out of x (B, T, E)."""
        out = torch.full_like(x, float("nan"))
        return self._forward(x, out, None), out

    def decoding(self, prefix, x, int8=False):
        """(run, out): run() computes out of one more token x (1, 1, E) after those of prefix (1, T, E).

        int8: they are cached as 8-bit integers.
        """
        length, out, cache = prefix.shape[1], torch.full_like(x, float("nan")), c_void_p()
        capacity = c_int64(length + 1)
        create = "cache_create_int8_for_layer" if int8 else "cache_create_for_layer"
        self._library.call(create, self._layer, c_int64(1), capacity, byref(cache))
        self._forward(prefix, torch.empty_like(prefix), cache)()
        step = self._forward(x, out, cache)
        forget = self._library.run([], "cache_truncate", cache, c_int64(length))

        def run():
            forget()
            step()

        return run, out

    def _forward(self, x, out, cache):
        args = self._library.init(ForwardArgs(), "forward_args")
        args.query = args.key = args.value = Tensor.of(x)
        args.out, args.scratch, args.cache = Tensor.of(out), self._scratch, cache
        keep = [self, x, out, args]
        if self._stream:
            size = c_size_t()
            self._library.call("layer_workspace_size", self._layer, byref(args), byref(size))
            workspace = torch.empty(size.value + 256, dtype=torch.uint8, device=x.device)
            args.stream, args.workspace_size = self._stream.cuda_stream, size.value
            args.workspace = (workspace.data_ptr() + 255) // 256 * 256
            keep.append(workspace)
        return self._library.run(keep, "layer_forward", self._layer, byref(args))
