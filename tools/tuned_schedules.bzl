"""tuned_schedules(): what tools/tune found, in a form that BUILD files can load."""

def _tuned_schedules_impl(rctx):
    tuned = {}
    for label in rctx.attr.files:
        content = json.decode(rctx.read(rctx.path(label)))
        tuned[content["target"]] = content["entries"]
    rctx.file("BUILD.bazel", "")
    rctx.file("tuned.bzl", "TUNED = json.decode(%s)\n" % repr(json.encode(tuned)))

tuned_schedules = repository_rule(
    implementation = _tuned_schedules_impl,
    doc = "A repository whose tuned.bzl holds TUNED, for posattn_kernels(tuned = TUNED).",
    attrs = {
        "files": attr.label_list(
            doc = "One file a target.",
            default = [
                "//schedules/tuned:sm90a.json",
                "//schedules/tuned:sm80.json",
                "//schedules/tuned:amx.json",
                "//schedules/tuned:avx512bf16.json",
                "//schedules/tuned:avx512.json",
                "//schedules/tuned:avx2.json",
                "//schedules/tuned:sse41.json",
            ],
        ),
    },
)
