"""Python programs and tests with the packages of a repository that python_packages() makes (pip.bzl). Bazel's own rules
for Python come with Bazel 4 but not with newer ones, where they would be one more dependency."""

_LAUNCHER = """#!/usr/bin/env bash
set -euo pipefail
root=$PWD
if [ ! -e "$root/{main}" ]; then root=$(cd "$0.runfiles/{workspace}" && pwd); fi
export BUILD_WORKING_DIRECTORY="${{BUILD_WORKING_DIRECTORY:-$PWD}}"  # as `bazel run` does: where paths are relative to
cd "$root"
export PYTHONPATH="{folders}$root/{packages}" PYTHONDONTWRITEBYTECODE=1  # the sources may be read-only
exec "$root/{python}" "$root/{main}" {arguments} "$@"
"""

def _python_impl(ctx):
    launcher = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.write(launcher, is_executable = True, content = _LAUNCHER.format(
        arguments = " ".join(["'%s'" % ctx.expand_location(arg, ctx.attr.data) for arg in ctx.attr.arguments]),
        folders = "".join(["$root/%s:" % folder for folder in ctx.attr.folders]),
        main = ctx.file.main.short_path,
        packages = ctx.file.packages.short_path,
        python = ctx.file.python.short_path,
        workspace = ctx.workspace_name,
    ))
    own = [ctx.file.main, ctx.file.packages, ctx.file.python]
    runfiles = ctx.runfiles(files = own + ctx.files.srcs + ctx.files.data)
    for target in ctx.attr.data:
        runfiles = runfiles.merge(target[DefaultInfo].default_runfiles)
    return [DefaultInfo(executable = launcher, runfiles = runfiles)]

_ATTRS = {
    "arguments": attr.string_list(doc = "Before those of the command line; $(location X) is X's path in the runfiles."),
    "data": attr.label_list(allow_files = True),
    "folders": attr.string_list(doc = "Of modules, in the workspace."),
    "main": attr.label(allow_single_file = [".py"], mandatory = True),
    "packages": attr.label(allow_single_file = True, mandatory = True),
    "python": attr.label(allow_single_file = True, mandatory = True),
    "srcs": attr.label_list(allow_files = [".py"], doc = "Modules."),
}

python_program = rule(
    implementation = _python_impl,
    attrs = _ATTRS,
    executable = True,
)

python_test = rule(
    implementation = _python_impl,
    attrs = _ATTRS,
    test = True,
)
