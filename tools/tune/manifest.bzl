"""tuning_manifest(): what the tuner needs to know of kernels, and the programs that compile them."""

load("//tools:posattn_kernels.bzl", "CUDA_TARGETS", "TYPES", "kernel_kinds")

def _tuning_manifest_impl(ctx):
    programs = {name: program[DefaultInfo] for program, name in ctx.attr.programs.items()}
    kinds = {
        name: {
            "branches": kind.branches,
            "builds": {
                target: {
                    "generator": build.generator,
                    "params": build.params,
                    "program": programs[build.program].files_to_run.executable.short_path,
                    "target": build.halide_target,
                    "types": build.types,
                }
                for target, build in kind.builds.items()
            },
            "head_dim": kind.head_dim,
        }
        for name, kind in kernel_kinds().items()
    }
    manifest = ctx.actions.declare_file(ctx.label.name + ".json")
    ctx.actions.write(manifest, json.encode({
        "gpu_targets": CUDA_TARGETS.keys(),
        "kinds": kinds,
        "measure": ctx.executable.measure.short_path,
        "types": TYPES,
        "version": ctx.attr.version,
    }))
    runfiles = ctx.runfiles(files = [manifest, ctx.executable.measure])
    for target in ctx.attr.programs.keys() + [ctx.attr.measure]:
        runfiles = runfiles.merge(target[DefaultInfo].default_runfiles)
    return [DefaultInfo(files = depset([manifest]), runfiles = runfiles)]

_tuning_manifest = rule(
    implementation = _tuning_manifest_impl,
    attrs = {
        "measure": attr.label(cfg = "target", executable = True),
        "programs": attr.label_keyed_string_dict(cfg = "exec"),
        "version": attr.string(),
    },
)

def tuning_manifest(name, **kwargs):
    programs = {build.program: None for kind in kernel_kinds().values() for build in kind.builds.values()}
    _tuning_manifest(
        name = name,
        programs = {"//generators:%s_program" % program: program for program in programs},
        **kwargs
    )
