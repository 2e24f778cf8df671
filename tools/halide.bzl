"""Programs that hold Halide generators, and the action that runs one to compile a function ahead of time."""

load("@rules_cc//cc:cc_binary.bzl", "cc_binary")
load("@rules_cc//cc:cc_library.bzl", "cc_library")

def halide_program(name, deps = [], **kwargs):
    """A program of the generators that its dependencies (alwayslink) register. It only ever runs during builds."""
    cc_binary(
        name = name,
        # `bazel build //...` shall not build it once more for the target platform.
        tags = ["manual"],
        deps = deps + [Label("//generators:main")],
        **kwargs
    )

def halide_compile(ctx, program, function, target, archive, generator = None, params = {}):
    """Declares the action that compiles one Halide function for one target.

    Args:
      ctx: of the rule.
      program: FilesToRunProvider of a halide_program.
      function: name of the C function that comes out.
      target: Halide's name of the machine and of its features.
      archive: the output, a static library.
      generator: which of the program's generators. Without one, it is Halide's runtime that is compiled.
      params: generator parameters, name -> value.
    """
    args = ctx.actions.args()
    args.add("-o", archive.dirname)
    args.add("-e", "static_library")
    if generator:
        args.add("-g", generator)
        args.add("-f", function)
    else:
        args.add("-r", function)
    args.add("target=" + target)
    args.add_all(["%s=%s" % param for param in params.items()])
    ctx.actions.run(
        arguments = [args],
        executable = program,
        mnemonic = "HalideCompile",
        outputs = [archive],
        progress_message = "Compiling Halide function " + function,
    )

def _runtime_archive_impl(ctx):
    halide_compile(
        ctx,
        archive = ctx.outputs.archive,
        function = ctx.attr.function,
        program = ctx.attr.program[DefaultInfo].files_to_run,
        target = ctx.attr.target,
    )

_runtime_archive = rule(
    implementation = _runtime_archive_impl,
    attrs = {
        "archive": attr.output(mandatory = True),
        "function": attr.string(mandatory = True),
        "program": attr.label(cfg = "exec", executable = True, mandatory = True),
        "target": attr.string(mandatory = True),
    },
)

def halide_runtime(name, program, target, **kwargs):
    """A cc_library of what compiled kernels call for threads and memory. A program holds exactly one."""
    _runtime_archive(
        name = name + "_archive",
        archive = name + ".a",
        function = name,
        program = program,
        target = target,
    )
    cc_library(
        name = name,
        srcs = [name + ".a"],
        linkopts = ["-ldl", "-lpthread"],
        linkstatic = True,
        deps = [Label("@halide//:runtime_headers")],
        **kwargs
    )
