"""posattn_kernels(): the manifest of the kernels that a program links."""

load("@rules_cc//cc:cc_library.bzl", "cc_library")
load("@posattn_tuned//:tuned.bzl", "TUNED")
load(":halide.bzl", "halide_compile", "halide_program")

# The machines that kernels are compiled for, best first. A program takes the first that it holds and the CPU has.
TARGETS = {
    "amx": "x86-64-linux-avx-avx2-avx512-avx512_cannonlake-avx512_sapphirerapids-avx512_skylake-avx512_zen4-f16c-fma-sse41",
    "avx512bf16": "x86-64-linux-avx-avx2-avx512-avx512_cannonlake-avx512_skylake-avx512_zen4-f16c-fma-sse41",
    "avx512": "x86-64-linux-avx-avx2-avx512-avx512_skylake-f16c-fma-sse41",
    "avx2": "x86-64-linux-avx-avx2-f16c-fma-sse41",
    "sse41": "x86-64-linux-sse41",
}

# GPUs that kernels are compiled for, best first. The host's part of a kernel only launches it.
_CUDA_HOST = "x86-64-linux-avx-f16c-sse41-user_context-"
CUDA_TARGETS = {
    # Hopper's tensor cores: machine code where the build has ptxas, which the CUDA toolkit brings, or else PTX.
    "sm90a": _CUDA_HOST + "cuda-cuda_capability_80",
    # Tensor cores of Ampere and later, PTX.
    "sm80": _CUDA_HOST + "cuda-cuda_capability_80",
    # CUDA cores alone, PTX for any card from compute capability 8.0: serves every case.
    "simt": _CUDA_HOST + "cuda-cuda_capability_80",
}

# Those whose kernels multiply on tensor cores: attention, and what sm90a's launches overlap with it.
_TENSOR_TARGETS = ["sm90a", "sm80"]
_TENSOR_PROGRAM = "attention_tensor"

# The runtime checks every argument and provides Halide's own support code once for all kernels.
_FEATURES = "-no_runtime-no_asserts-no_bounds_query"

# Those for one storage type alone: for others they would be the next target's kernels once more.
_TARGET_TYPES = {
    "amx": "bf16",
    "avx512bf16": "bf16",
}

# Storage types, and what Halide calls them.
TYPES = {
    "f32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
}

def _kind(
        program,
        generator = None,
        branches = None,
        head_dim = False,
        types = None,
        params = {},
        cpu = True,
        cuda = None,
        tensor = None,
        sm90a = None):
    """cpu: whether there are kernels of this kind for CPUs. cuda, tensor: parameters of those for GPUs without and with tensor cores, None if there are none. sm90a: of the same program as for others, for that target alone."""
    return struct(
        branches = branches,
        cpu = cpu,
        cuda = cuda,
        generator = generator or program,
        head_dim = head_dim,
        params = params,
        program = program,
        sm90a = sm90a,
        tensor = tensor,
        types = types,
    )

# Of each kind of kernel: the program in //generators that compiles it, and what its variants differ in besides the
# target: the set of branches (or, for a kind that serves one branch at a time, each single branch), the head
# dimension, and the storage type (or one type for all).
_KINDS = {
    # Attention over many queries, and over a few queries with the keys split.
    "prefill": _kind(
        "attention",
        branches = "sets",
        cuda = {"key_form": "plain"},
        head_dim = True,
        params = {"decode": "false"},
        tensor = {"compiled_terms": "all"},
    ),
    # The same on tensor cores for calls with nothing added to the scores, or only a tabulated or a dense bias.
    "prefill_plain": _kind(_TENSOR_PROGRAM, cpu = False, head_dim = True, tensor = {"compiled_terms": "plain"}),
    "prefill_dense": _kind(_TENSOR_PROGRAM, cpu = False, head_dim = True, tensor = {"compiled_terms": "dense"}),
    # A dense bias of the type of the queries, in tiles that Hopper copies.
    "prefill_dense_16": _kind(_TENSOR_PROGRAM, cpu = False, head_dim = True, tensor = {"compiled_terms": "dense_16"}),
    "prefill_offsets": _kind(_TENSOR_PROGRAM, cpu = False, head_dim = True, tensor = {"compiled_terms": "offsets"}),
    "decode": _kind(
        "attention",
        branches = "sets",
        cuda = {"key_form": "words"},
        head_dim = True,
        params = {"decode": "true"},
        tensor = {"compiled_terms": "all", "decode": "true"},
    ),
    # The same over a cache of 8-bit integers, for queries of any type: see KvCache. Only where asked for.
    "prefill_i8": _kind(
        "attention",
        branches = "sets",
        head_dim = True,
        params = {"decode": "false", "int8_cache": "true"},
    ),
    "decode_i8": _kind(
        "attention",
        branches = "sets",
        head_dim = True,
        params = {"decode": "true", "int8_cache": "true"},
    ),
    # A single row is most of decoding, and on a GPU its kernel needs less of everything.
    "decode_row": _kind(
        "attention",
        branches = "sets",
        cpu = False,
        cuda = {"key_form": "words", "query_block": "1", "tile_rows": "1"},
        head_dim = True,
        params = {"decode": "true"},
    ),
    # Up to 16 rows, and nothing added to the scores, on tensor cores.
    "decode_plain": _kind(
        _TENSOR_PROGRAM,
        cpu = False,
        head_dim = True,
        tensor = {"compiled_terms": "plain", "decode": "true"},
    ),
    # Joins the split keys' partial results.
    "merge": _kind("merge", cuda = {}, head_dim = True, sm90a = {}),
    # Attention weights, when a caller asks for them.
    "weights": _kind("weights", branches = "sets", cuda = {"key_form": "plain"}),
    # A branch as a table of one number an offset; for a branch that is not shift-invariant it only says so.
    "offsets": _kind("offsets", branches = "singles", cuda = {}, types = ["f32"]),
    # Keys and values in the layout that the attention kernels read.
    "pack_keys": _kind("pack", generator = "pack_keys", head_dim = True),
    "pack_values": _kind("pack", generator = "pack_values", head_dim = True),
    "rotary": _kind("rotary", cuda = {}),
    "projection": _kind("projection"),
    # What a CPU tabulates outside of kernels, from tensors on a GPU.
    "clear_values": _kind("tables", cpu = False, cuda = {}, generator = "clear_values", types = ["f32"]),
    "key_mask": _kind("tables", cpu = False, cuda = {}, generator = "key_mask", types = ["f32"]),
    "float_mask": _kind("tables", cpu = False, cuda = {}, generator = "float_mask", types = ["f32"]),
    "keep_mask": _kind("tables", cpu = False, cuda = {}, generator = "keep_mask", types = ["f32"]),
    "positions": _kind("tables", cpu = False, cuda = {}, generator = "positions", types = ["f32"]),
    "rotation": _kind("tables", cpu = False, cuda = {}, generator = "rotation", types = ["f32"]),
    # What a CPU does in plain loops for layers and caches.
    "copy_rows": _kind("streams", cpu = False, cuda = {}, generator = "copy_rows"),
    "add_rows": _kind("streams", cpu = False, cuda = {}, generator = "add_rows"),
    "table_rows": _kind("streams", cpu = False, cuda = {}, generator = "table_rows", types = ["f32"]),
    "waves": _kind("streams", cpu = False, cuda = {}, generator = "waves", types = ["f32"]),
    "activation": _kind("streams", cpu = False, cuda = {}, generator = "activation", types = ["f32"]),
    # What float32 layers multiply on tensor cores.
    "split_rows": _kind("split", cpu = False, cuda = {}, generator = "split_rows", types = ["f32"]),
    "extra_factors": _kind("extra_keys", cpu = False, cuda = {}, generator = "extra_factors"),
    "extra_out": _kind("extra_keys", cpu = False, cuda = {}, generator = "extra_out"),
    "extra_weights": _kind("extra_keys", cpu = False, cuda = {}, generator = "extra_weights"),
    "mean_weights": _kind("extra_keys", cpu = False, cuda = {}, generator = "mean_weights"),
}

_OPTIONAL_KINDS = ["prefill_i8", "decode_i8"]

def _has_kernels(kind, type, target):
    if kind in _OPTIONAL_KINDS and target in _TARGET_TYPES:
        return False
    if target == "sm90a" and _KINDS[kind].sm90a != None:
        return True
    if target in _TENSOR_TARGETS:
        if kind == "prefill_dense_16" and (type == "f32" or target == "sm80"):
            return False
        # Those of float32 are for calls that do not need every term.
        return _KINDS[kind].tensor != None and not (type == "f32" and kind in ["prefill", "decode"])
    return _KINDS[kind].cuda != None if target in CUDA_TARGETS else _KINDS[kind].cpu

def _has_head_dim(kind, type, target, head_dim):
    # Of float32, tiles of larger heads and their parts do not fit sm90a's shared memory.
    return not (kind.startswith("prefill") and type == "f32" and target == "sm90a" and head_dim > 128)

def _is_tensor(kind, target):
    return target in _TENSOR_TARGETS and _KINDS[kind].sm90a == None

def _program(kind, target):
    return _TENSOR_PROGRAM if _is_tensor(kind, target) else _KINDS[kind].program

def _generator(kind, target):
    return _TENSOR_PROGRAM if _is_tensor(kind, target) else _KINDS[kind].generator

def _halide_target(target):
    return (TARGETS.get(target) or CUDA_TARGETS[target]) + _FEATURES

def _kind_params(kind, target):
    """Generator parameters that do not depend on the kernel's branches, head dimension and type."""
    is_tensor = _is_tensor(kind, target)
    kind = _KINDS[kind]
    if is_tensor:
        params = dict(kind.tensor)
        params.update({"card": target, "key_form": "plain"})
        return params
    if target in _TENSOR_TARGETS:
        params = dict(kind.sm90a)
        params["card"] = target
        return params
    params = dict(kind.params)
    if target in CUDA_TARGETS:
        params.update(kind.cuda)
    return params

def kernel_kinds():
    """What the tuner calls generators with: of each kind, how it is compiled for each target."""
    return {
        name: struct(
            branches = bool(kind.branches),
            builds = {
                target: struct(
                    generator = _generator(name, target),
                    halide_target = _halide_target(target),
                    params = _kind_params(name, target),
                    program = _program(name, target),
                    types = [
                        type
                        for type in kind.types or TYPES.keys()
                        if _has_kernels(name, type, target) and type == _TARGET_TYPES.get(target, type)
                    ],
                )
                for target in TARGETS.keys() + CUDA_TARGETS.keys()
                if _has_kernels(name, "any", target)
            },
            head_dim = kind.head_dim,
        )
        for name, kind in _KINDS.items()
    }

def _normal(branch_set):
    """'t5+alibi' -> 'alibi+t5', which is how the runtime looks a set up."""
    return "+".join(sorted(branch_set.split("+")))

def _variants(tuned, kind, head_dim, type, target):
    """Of one kernel: what it is compiled as, for the calls of each shape class that was tuned, and for all others.

    All sets of branches share them: that a table of zeros changes no bit holds where scores are summed alike.
    """
    entries = [
        entry
        for entry in tuned.get(target, [])
        if entry["kind"] == kind and entry["head_dim"] == head_dim and entry["type"] == type
    ]
    general = [entry for entry in entries if not entry["max_queries"] and not entry["max_keys"]]
    params = general[0]["parameters"] if general else {}
    return [struct(max_keys = 0, max_queries = 0, params = params, shape = "")] + [
        struct(
            max_keys = entry["max_keys"],
            max_queries = entry["max_queries"],
            params = entry["parameters"],
            shape = entry["shape"],
        )
        for entry in entries
        if entry not in general and entry["parameters"] != params
    ]

def _manifest(kinds, branches, head_dims, types, targets, tuned):
    """One struct a kernel: kind, branches, head_dim, type, target, and a variant."""
    sets = {_normal(branch_set): None for branch_set in branches}.keys()
    singles = {branch: None for branch_set in sets for branch in branch_set.split("+") if branch != "none"}.keys()
    return [
        struct(
            branches = branch_set,
            head_dim = head_dim,
            kind = kind,
            target = target,
            type = type,
            variant = variant,
        )
        for kind in kinds
        for branch_set in {"sets": sets, "singles": singles, None: ["none"]}[_KINDS[kind].branches]
        for head_dim in (head_dims if _KINDS[kind].head_dim else [0])
        for type in _KINDS[kind].types or types
        for target in targets
        if _has_kernels(kind, type, target) and _has_head_dim(kind, type, target, head_dim) and
           _TARGET_TYPES.get(target, types[0]) in types and
           (_KINDS[kind].types or type == _TARGET_TYPES.get(target, type))
        for variant in _variants(tuned, kind, head_dim, type, target)
    ]

def _symbol(prefix, kernel):
    parts = [prefix, kernel.kind]
    if kernel.branches != "none" or _KINDS[kernel.kind].branches:
        parts.append(kernel.branches.replace("+", "_"))
    if kernel.head_dim:
        parts.append(str(kernel.head_dim))
    parts += [kernel.type, kernel.target]
    if kernel.variant.shape:
        parts.append(kernel.variant.shape)
    return "_".join(parts)

def _params(kernel):
    kind = _KINDS[kernel.kind]
    params = _kind_params(kernel.kind, kernel.target)
    if kind.branches:
        params["branches"] = kernel.branches
    if kind.head_dim:
        params["head_dim"] = str(kernel.head_dim)
    if not kind.types:
        params["type"] = TYPES[kernel.type]
    params.update({name: str(value) for name, value in kernel.variant.params.items()})
    return params

def _kernel_archives_impl(ctx):
    programs = {name: program[DefaultInfo].files_to_run for program, name in ctx.attr.programs.items()}

    archives, rows = [], []
    for kernel in _manifest(
        ctx.attr.kinds,
        ctx.attr.branches,
        ctx.attr.head_dims,
        ctx.attr.types,
        ctx.attr.targets,
        json.decode(ctx.attr.tuned),
    ):
        symbol = _symbol(ctx.attr.prefix, kernel)
        archive = ctx.actions.declare_file("%s/%s.a" % (ctx.label.name, symbol))
        halide_compile(
            ctx,
            archive = archive,
            function = symbol,
            generator = _generator(kernel.kind, kernel.target),
            params = _params(kernel),
            program = programs[_program(kernel.kind, kernel.target)],
            target = _halide_target(kernel.target),
        )
        archives.append(archive)
        rows.append("\t".join([
            symbol,
            kernel.kind,
            kernel.branches,
            str(kernel.head_dim),
            kernel.type,
            kernel.target,
            str(kernel.variant.max_queries),
            str(kernel.variant.max_keys),
            archive.path,
        ]))

    manifest = ctx.actions.declare_file(ctx.label.name + ".tsv")
    ctx.actions.write(manifest, "".join([row + "\n" for row in rows]))
    registry = ctx.actions.declare_file(ctx.label.name + ".cpp")
    ctx.actions.run_shell(
        arguments = [ctx.file._registry_tool.path, manifest.path, registry.path],
        command = 'python3 "$@"',
        # The sizes of the objects go into the registry.
        inputs = [ctx.file._registry_tool, manifest] + archives,
        mnemonic = "KernelRegistry",
        outputs = [registry],
        progress_message = "Writing the registry of %d kernels" % len(rows),
        use_default_shell_env = True,
    )
    return [
        DefaultInfo(files = depset([registry])),
        OutputGroupInfo(archives = depset(archives), manifest = depset([manifest])),
    ]

_kernel_archives = rule(
    implementation = _kernel_archives_impl,
    doc = "The static library of every kernel of a manifest, and the C++ file that registers them all.",
    attrs = {
        "branches": attr.string_list(),
        "head_dims": attr.int_list(),
        "kinds": attr.string_list(),
        "prefix": attr.string(),
        "programs": attr.label_keyed_string_dict(cfg = "exec"),
        "targets": attr.string_list(),
        "tuned": attr.string(),
        "types": attr.string_list(),
        "_registry_tool": attr.label(allow_single_file = True, default = "//tools:kernel_registry.py"),
    },
)

def posattn_kernels(
        name,
        branches = ["none"],
        head_dims = [64],
        types = ["f32"],
        targets = TARGETS.keys(),
        kinds = [kind for kind in _KINDS if kind not in _OPTIONAL_KINDS],
        branch_deps = [],
        prefix = None,
        tuned = TUNED,
        **kwargs):
    """A cc_library of compiled kernels, which register themselves in the program that links it.

    A program links one of these or several; where two hold the same kernel, the registry takes either.

    Args:
      name: of the library.
      branches: sets of positional branches, each compiled into its own attention kernels: "none", "alibi",
        "alibi+relative", ...
      head_dims: sizes of a head. A smaller one is served by the next larger, padded.
      types: storage types: "f32", "bf16", "f16".
      targets: names in TARGETS, or in CUDA_TARGETS for kernels that run on GPUs. "amx" and "avx512bf16" have
        kernels of bf16 only.
      kinds: kinds of kernels to leave out those that the program never calls. By default all but "prefill_i8" and
        "decode_i8", which attend to caches of 8-bit integers.
      branch_deps: cc_library targets (alwayslink = True) that define more branches by posattn::RegisterBranch.
      prefix: of the kernels' C symbols; it must be unique in a program. Made of the package and name by default.
      tuned: the schedules' parameters, as of a repository that tuned_schedules() makes of an application's own files;
        the library's own, schedules/tuned, by default. {} for those chosen by hand.
      **kwargs: passed on to cc_library, such as visibility.
    """
    known_targets = dict(TARGETS)
    known_targets.update(CUDA_TARGETS)
    for value, known, what in (
        [(kind, _KINDS, "kind") for kind in kinds] +
        [(type, TYPES, "type") for type in types] +
        [(target, known_targets, "target") for target in targets]
    ):
        if value not in known:
            fail("{}: there is no {} '{}', only {}".format(name, what, value, ", ".join(known.keys())))
    if not [target for target in targets if _TARGET_TYPES.get(target, types[0]) in types]:
        fail("{}: targets {} have no kernels of types {}".format(name, ", ".join(targets), ", ".join(types)))
    if not prefix:
        prefix = "_".join([native.package_name(), name]).strip("_")
        prefix = "".join([c if c.isalnum() else "_" for c in prefix.elems()])

    # The library's own programs hold the built-in branches; the caller's branches need programs that hold them too.
    programs = {}
    for kind, used in {
        (kind, _program(kind, target)): None
        for kind in kinds
        for target in targets
        if _has_kernels(kind, "any", target)
    }.keys():
        if branch_deps and _KINDS[kind].branches:
            program = ":%s_%s_program" % (name, used)
            if program not in programs:
                halide_program(
                    name = program[1:],
                    deps = [Label("//generators:" + used)] + branch_deps,
                )
        else:
            program = str(Label("//generators:%s_program" % used))
        programs[program] = used

    _kernel_archives(
        name = name + "_registry",
        branches = branches,
        head_dims = head_dims,
        kinds = kinds,
        prefix = prefix,
        programs = programs,
        targets = targets,
        tuned = json.encode(tuned),
        types = types,
    )

    # Linkers read archives in order: the registry, then the kernels that it names, then what these call.
    native.filegroup(
        name = name + "_archives",
        srcs = [name + "_registry"],
        output_group = "archives",
    )
    cc_library(
        name = name + "_objects",
        srcs = [name + "_archives"],
        linkstatic = True,
        deps = [Label("//kernels:halide_runtime")] + (
            [Label("//runtime/cuda:launch")] if [target for target in targets if target in CUDA_TARGETS] else []
        ),
    )
    cc_library(
        name = name,
        srcs = [name + "_registry"],
        alwayslink = True,
        copts = ["-std=c++17"],
        linkstatic = True,
        deps = [
            ":%s_objects" % name,
            Label("//runtime:kernel_registry"),
        ],
        **kwargs
    )
