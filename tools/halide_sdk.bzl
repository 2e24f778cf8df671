"""Fetches the Halide SDK (compiler, headers, generators' main) from its Python wheel."""

load(":pip.bzl", "pip_install")

def _halide_sdk_impl(rctx):
    wheel = pip_install(rctx, rctx.attr.distribution, rctx.attr.version, rctx.attr.sha256)

    # lib64/ on Linux, lib/ on macOS: one name for both.
    root = wheel.get_child(rctx.attr.package)
    lib = root.get_child("lib64")
    rctx.symlink(lib if lib.exists else root.get_child("lib"), "lib")
    rctx.symlink(root.get_child("include"), "include")
    rctx.symlink(rctx.attr._build_file, "BUILD.bazel")

halide_sdk = repository_rule(
    implementation = _halide_sdk_impl,
    doc = "The Halide SDK as a repository; see halide.BUILD.bazel for its targets.",
    attrs = {
        "distribution": attr.string(
            doc = "Name on the Python package index: halide, or halide-bin from version 22 on.",
            default = "halide",
        ),
        "package": attr.string(
            doc = "Top-level folder inside the wheel.",
            default = "halide",
        ),
        "version": attr.string(default = "21.0.0"),
        "sha256": attr.string_list(
            doc = "The wheels that are accepted: one for each supported platform.",
            default = [
                "6db7fa414e6a38bde49630066d8fdba1a71d86aff9b4636dbc65b5b5f652428e",  # Linux x86-64
                "cfd0d143638c0cba322e7b7c63f5930f3147d9e6d613018cab3f42406731d558",  # macOS arm64
            ],
        ),
        "_build_file": attr.label(default = "//tools:halide.BUILD.bazel"),
    },
)
