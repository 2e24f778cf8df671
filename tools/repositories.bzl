"""What MODULE.bazel declares, for Bazel older than 7: all of it from the distribution's packages (`bazelw` lists
them) and nothing from the network but two Python wheels."""

load(":halide_sdk.bzl", "halide_sdk")
load(":minilm_model.bzl", "minilm_model")
load(":pip.bzl", "python_packages")
load(":tuned_schedules.bzl", "tuned_schedules")

def _files_impl(rctx):
    for path, content in rctx.attr.files.items():
        rctx.file(path, content)

_files = repository_rule(
    implementation = _files_impl,
    attrs = {"files": attr.string_dict()},
)

# The packages install headers and libraries where the compiler looks anyway, so the target of a library is only
# its name and its linker flags.
_LIBRARY = """
cc_library(
    name = "{name}",
    linkopts = {linkopts},
    visibility = ["//visibility:public"],
)
"""

def _libraries(repository, libraries):
    _maybe(_files, repository, files = {"BUILD.bazel": "".join([
        _LIBRARY.format(name = name, linkopts = linkopts)
        for name, linkopts in libraries.items()
    ])})

def _maybe(rule, name, **kwargs):
    if not native.existing_rule(name):
        rule(name = name, **kwargs)

def posattn_repositories():
    """What the library needs."""
    _maybe(halide_sdk, "halide")
    _maybe(tuned_schedules, "posattn_tuned")
    _libraries("nlohmann_json", {"json": []})
    _libraries("cli11", {"cli11": []})
    _bazel_itself()

def posattn_test_repositories():
    """What only its tests, benchmarks, examples and the tuner need."""
    _maybe(python_packages, "tune_packages", requirements = "@posattn//tools/tune:requirements.txt")
    _maybe(minilm_model, "minilm")
    _libraries("googletest", {
        "gtest": ["-lgtest", "-lpthread"],
        "gtest_main": ["-lgtest_main", "-lgtest", "-lpthread"],
    })
    _libraries("google_benchmark", {
        "benchmark": ["-lbenchmark", "-lpthread"],
        "benchmark_main": ["-lbenchmark_main", "-lbenchmark", "-lpthread"],
    })

_CC_RULES = [
    "cc_binary",
    "cc_import",
    "cc_library",
    "cc_proto_library",
    "cc_test",
    "cc_toolchain",
    "cc_toolchain_suite",
    "fdo_prefetch_hints",
    "fdo_profile",
    "objc_import",
    "objc_library",
]

def _bazel_itself():
    """Repositories that Bazel's own tools refer to and would fetch from GitHub."""

    # Debian's copy of rules_cc needs a newer Bazel than Debian's.
    rules_cc = {"cc/%s.bzl" % rule: "{0} = native.{0}\n".format(rule) for rule in _CC_RULES}
    rules_cc["cc/defs.bzl"] = "".join(rules_cc.values())
    rules_cc["cc/BUILD.bazel"] = ""
    _maybe(_files, "rules_cc", files = rules_cc)

    _maybe(native.local_repository, "rules_java", path = "/usr/share/bazel/rules/java")
    _maybe(native.local_repository, "rules_proto", path = "/usr/share/bazel/rules/proto")

    # `bazel test` asks for it even where it collects no coverage.
    _maybe(_files, "remote_coverage_tools", files = {"BUILD.bazel": """
filegroup(
    name = "coverage_report_generator",
    visibility = ["//visibility:public"],
)
"""})
