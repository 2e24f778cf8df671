"""tuning_manifest(): what the tuner needs to know of kernels, and the programs that compile them."""

load("//tools:posattn_kernels.bzl", "KERNEL_FEATURES", "KERNEL_KINDS", "TARGETS", "TYPES")

def _tuning_manifest_impl(ctx):
    programs = {name: program[DefaultInfo] for program, name in ctx.attr.programs.items()}
    kinds = {
        name: {
            "branches": bool(kind.branches),
            "generator": kind.generator,
            "head_dim": kind.head_dim,
            "params": kind.params,
            "program": programs[kind.program].files_to_run.executable.short_path,
            "types": kind.types or TYPES.keys(),
        }
        for name, kind in KERNEL_KINDS.items()
        if kind.cpu
    }
    manifest = ctx.actions.declare_file(ctx.label.name + ".json")
    ctx.actions.write(manifest, json.encode({
        "kinds": kinds,
        "measure": ctx.executable.measure.short_path,
        "targets": {name: target + KERNEL_FEATURES for name, target in TARGETS.items()},
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
    programs = {kind.program: None for kind in KERNEL_KINDS.values() if kind.cpu}
    _tuning_manifest(
        name = name,
        programs = {"//generators:%s_program" % program: program for program in programs},
        **kwargs
    )
