"""How this project compiles its own C++."""

load("@rules_cc//cc:cc_binary.bzl", "cc_binary")
load("@rules_cc//cc:cc_library.bzl", "cc_library")
load("@rules_cc//cc:cc_test.bzl", "cc_test")

# The language version stands here because a downstream workspace does not read our .bazelrc. Warnings are errors only
# in this workspace, whose .bazelrc sets the define, so that a newer compiler never breaks a downstream build.
COPTS = [
    "-std=c++17",
    "-Wall",
    "-Wextra",
] + select({
    "//tools:strict": [
        "-Werror",
        # GCC 12 sees an overrun in every std::sort of a small array that it inlines.
        "-Wno-array-bounds",
    ],
    "//conditions:default": [],
})

def posattn_library(name, **kwargs):
    """A cc_library. Static, because a program holds exactly one registry of kernels and one Halide runtime."""
    cc_library(name = name, copts = COPTS, linkstatic = True, **kwargs)

def posattn_binary(name, **kwargs):
    cc_binary(name = name, copts = COPTS, **kwargs)

def posattn_test(name, size = "small", **kwargs):
    cc_test(name = name, copts = COPTS, linkstatic = True, size = size, **kwargs)
