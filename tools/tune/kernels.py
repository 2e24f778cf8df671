"""Kernels that can be tuned: what their generators leave open, and how one is compiled to be measured."""

import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess

_BUILD_SECONDS = 300


class Failed(Exception):
    """What a user did, or what is missing, in one line."""


class BuildFailed(Exception):
    """The generator or the linker refused a candidate."""


def fingerprint(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class Manifest:
    """What the build knows of kernels; tools/tune/manifest.bzl writes it. Paths are relative to `root`."""

    def __init__(self, path, root=None):
        with open(path) as file:
            self._content = json.load(file)
        self.root = pathlib.Path(root or os.getcwd())
        self.version = self._content["version"]
        self.measure = str(self.root / self._content["measure"])
        self.types = self._content["types"]
        self.gpu_targets = self._content["gpu_targets"]
        self.kinds = self._content["kinds"]

    def runs_on_gpu(self, target):
        return target in self.gpu_targets

    def program(self, kind, target):
        return str(self.root / self.kinds[kind]["builds"][target]["program"])


@dataclasses.dataclass(frozen=True)
class Kernel:
    kind: str
    head_dim: int
    type: str
    target: str
    # Those that it is timed with. All sets of branches share what is found: see _variants() in posattn_kernels.bzl.
    branches: str = "none"

    def __str__(self):
        dim = f" {self.head_dim}" if self.head_dim else ""
        return f"{self.target} {self.kind}{dim} {self.type}"

    def as_json(self):
        return dataclasses.asdict(self)


@dataclasses.dataclass
class Parameter:
    """As schedules/tuning_space.h has it."""

    name: str
    value: int
    low: int
    high: int
    step: int
    times: str

    @property
    def label(self):
        """Of the number that is searched for."""
        return f"{self.name} / {self.times}" if self.times else self.name


class Space:
    """What a kernel's schedule leaves open."""

    def __init__(self, description):
        self.halide = description["halide"]
        self.parameters = [Parameter(**parameter) for parameter in description["parameters"]]
        self.shapes = {shape["name"]: shape for shape in description["shapes"]}
        self.fingerprint = fingerprint(description["parameters"])

    def by_hand(self):
        return {parameter.name: parameter.value for parameter in self.parameters}

    def numbers(self, point):
        """What is searched for, by label, of a point; None if it is not of this space."""
        numbers = {}
        if set(point) != {parameter.name for parameter in self.parameters}:
            return None
        for p in self.parameters:
            unit = point[p.times] if p.times else 1
            number, rest = divmod(point[p.name], unit)
            if rest or not p.low <= number <= p.high or (number - p.low) % p.step:
                return None
            numbers[p.label] = number
        return numbers

    def point(self, number_of):
        """The point of the numbers that number_of(parameter) gives."""
        point = {}
        for p in self.parameters:
            point[p.name] = number_of(p) * (point[p.times] if p.times else 1)
        return point


class Generator:
    """Calls the program that compiles a kernel."""

    def __init__(self, manifest, kernel):
        kind = manifest.kinds.get(kernel.kind)
        build = kind["builds"].get(kernel.target) if kind else None
        for known, value, what in (
            (manifest.kinds, kernel.kind, "kind"),
            (kind["builds"] if kind else [], kernel.target, "target"),
            (build["types"] if build else [], kernel.type, "type"),
        ):
            if value not in known:
                raise Failed(f"there is no {what} '{value}', only {', '.join(known)}")
        if kind["head_dim"] and not kernel.head_dim:
            raise Failed(f"kernels of kind {kernel.kind} have a --head-dim")
        self._program = manifest.program(kernel.kind, kernel.target)
        self._generator = build["generator"]
        params = dict(build["params"], type=manifest.types[kernel.type])
        if kind["head_dim"]:
            params["head_dim"] = kernel.head_dim
        if kind["branches"]:
            params["branches"] = kernel.branches
        self._params = [f"{name}={value}" for name, value in params.items()] + [f"target={build['target']}"]

    def _describe(self, point):
        command = [self._program, "--tuning-space", self._generator, *self._params, *_assignments(point)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise Failed(f"{self._generator}: {_last_line(result.stderr)}")
        return json.loads(result.stdout)

    def space(self):
        space = Space(self._describe({}))
        if not space.parameters:
            raise Failed(f"the schedule of {self._generator} leaves nothing open")
        if space.numbers(space.by_hand()) is None:
            raise Failed(f"the values of {self._generator} that were chosen by hand are not in its own range")
        return space

    def infeasible(self, point, shape):
        """Why a point is not worth building for this class of shapes; "" if it is."""
        for name, most in shape["most"].items():
            if point[name] > most:
                return f"{name} is more than {most}"
        return self._describe(point)["infeasible"]

    def archive(self, point, symbol, folder):
        """A static library of the function `symbol`."""
        command = [self._program, "-o", str(folder), "-e", "static_library", "-g", self._generator, "-f", symbol]
        _run([*command, *self._params, *_assignments(point)])
        return folder / f"{symbol}.a"

    def library(self, point, symbol, folder):
        """The same as a shared library, which the measuring program loads."""
        archive = self.archive(point, symbol, folder)
        library = folder / f"{symbol}.so"
        compiler = os.environ.get("CC", "cc")
        _run([compiler, "-shared", "-o", str(library), "-Wl,--whole-archive", str(archive), "-Wl,--no-whole-archive"])
        archive.unlink()
        return library


def code_fingerprint(archive):
    """Of what a generator made: another version of the algorithm, the schedule or the compiler makes something else."""
    return hashlib.sha256(archive.read_bytes()).hexdigest()[:16]


def _assignments(point):
    return [f"{name}={value}" for name, value in point.items()]


def _last_line(text):
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"


def _run(command):
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS)
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"more than {_BUILD_SECONDS} s") from None
    except OSError as error:
        raise BuildFailed(f"{command[0]}: {error.strerror}") from None
    if result.returncode:
        raise BuildFailed(_last_line(result.stderr or result.stdout))
