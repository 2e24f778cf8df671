"""Attention by every framework that is installed, on the same tensors: name -> function that returns the output.

Tried and left out, as none of their shapes came near the best peer: PyTorch's FlexAttention (20 to 33 GFLOP/s on a core
where the others reach 60 to 80, also with a bias) and ggml's flash_attn_ext (17 GFLOP/s; decoding at a third of the
bandwidth beyond the caches).
"""

import functools

import torch
import torch.nn.functional as F

try:
    import openvino
    from openvino import opset13
except ImportError:
    openvino = None
try:
    import onnx
    import onnxruntime
except ImportError:
    onnxruntime = None

_ELEMENTS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def attention(q, k, v, mask, causal, threads):
    """PyTorch comes first. mask: additive, or None."""
    found = {"pytorch": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)}
    if openvino and q.shape[2] > 1:  # a single row takes it 10 to 50 times as long as the others
        found["openvino"] = _openvino(q, k, v, mask, causal, threads)
    if onnxruntime and mask is None and not causal and q.dtype == torch.float32:
        found["onnxruntime"] = _onnxruntime(q, k, v, threads)
    return found


@functools.cache
def _core():
    return openvino.Core()


def _openvino(q, k, v, mask, causal, threads):
    """float32 in and out: its own conversion of inputs to bfloat16 is part of what a user of it pays.

    Inputs are shared, not copied, so run() keeps them.
    """
    inputs = [t.float().contiguous().numpy() for t in (q, k, v, *(() if mask is None else (mask,)))]
    parameters = [opset13.parameter(list(array.shape), array.dtype) for array in inputs]
    node = opset13.scaled_dot_product_attention(*parameters, causal=causal)
    options = {"INFERENCE_PRECISION_HINT": _ELEMENTS[q.dtype], "INFERENCE_NUM_THREADS": threads}
    request = _core().compile_model(openvino.Model([node], parameters), "CPU", options).create_infer_request()
    for i, array in enumerate(inputs):
        request.set_input_tensor(i, openvino.Tensor(array, shared_memory=True))

    def run(_keep=inputs):
        request.infer()
        return torch.from_numpy(request.get_output_tensor(0).data)

    return run


def _onnxruntime(q, k, v, threads):
    """MultiHeadAttention of com.microsoft, on (B, T, heads * D) as it wants them."""
    batch, heads, length, dim = q.shape
    feed = {name: t.transpose(1, 2).flatten(2).contiguous().numpy() for name, t in zip("qkv", (q, k, v))}

    def value_info(name):
        shape = feed["q" if name == "o" else name].shape
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    node = onnx.helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["o"], domain="com.microsoft", num_heads=heads)
    graph = onnx.helper.make_graph([node], "attention", [value_info(name) for name in "qkv"], [value_info("o")])
    versions = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=versions, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between calls, when others take their turns
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run():
        out = torch.from_numpy(session.run(None, feed)[0])
        return out.view(batch, length, heads, dim).transpose(1, 2)

    return run
