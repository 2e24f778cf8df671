"""posattn_generator(): the generators of one file, as a library and as a program of their own."""

load(":cc.bzl", "posattn_library")
load(":halide.bzl", "halide_program")

def build_time_library(name, **kwargs):
    """A library of code that only generators run: `bazel build //...` builds it for the host alone."""
    posattn_library(name = name, tags = ["manual"], **kwargs)

def posattn_generator(name, deps):
    """NAME_generator.cpp as the library NAME and the program NAME_program.

    Every generator has a program of its own, so that a change to one schedule recompiles no other kernels.

    Args:
      name: of the library.
      deps: algorithms and schedules.
    """
    build_time_library(
        name = name,
        srcs = [name + "_generator.cpp"],
        alwayslink = True,
        deps = deps,
    )
    halide_program(
        name = name + "_program",
        deps = [":" + name],
    )
