"""Runs the measuring program for one candidate, here; or writes down what it is to do elsewhere."""

import json
import shlex
import subprocess
import tempfile
import pathlib

import kernels
import records

VERIFY_CASES = 3


def device(manifest, target=""):
    """What runs the target here: the CPU, or a GPU."""
    command = [manifest.measure, "device"] + (["--target", target] if target else [])
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise kernels.Failed(result.stderr.strip() or "the measuring program does not run here")
    return json.loads(result.stdout)


class Options:
    def __init__(self, seconds, timeout, give_up=0.0, launcher=""):
        self.seconds, self.timeout, self.give_up = seconds, timeout, give_up
        self.launcher = shlex.split(launcher)  # of the measuring program, such as taskset


def make_job(manifest, subject, point, call_index, round_, options, candidate, baseline):
    """candidate, baseline: (library, symbol)."""
    fields = subject.fields(point, subject.shape["timed"][call_index], round_)
    return {
        "id": kernels.fingerprint(fields),
        **fields,
        "versions": {"posattn": manifest.version, "halide": subject.space.halide},
        "seconds": options.seconds,
        "timeout": options.timeout,
        "give_up": options.give_up,
        # The first call's verdict is the candidate's.
        "verify_cases": VERIFY_CASES if call_index == 0 else 0,
        "candidate": {"library": str(candidate[0]), "symbol": candidate[1]},
        "baseline": {"library": str(baseline[0]), "symbol": baseline[1]},
    }


class Workbench:
    """Builds and measures candidates of one subject. A folder of its own holds what is built; close() removes it."""

    def __init__(self, manifest, subject, generator, records_path, options):
        self._manifest, self._subject, self._generator = manifest, subject, generator
        self._path, self._options = records_path, options
        self._folder = tempfile.TemporaryDirectory(prefix="posattn-tune-")
        self.folder = pathlib.Path(self._folder.name)
        self._baseline = (generator.library(subject.space.by_hand(), "baseline", self.folder), "baseline")

    def close(self):
        self._folder.cleanup()

    def build(self, point):
        """(library, symbol). A candidate that cannot be built is recorded, and None returned."""
        symbol = "candidate_" + kernels.fingerprint(point)
        try:
            return self._generator.library(point, symbol, self.folder), symbol
        except kernels.BuildFailed as error:
            fields = self._subject.fields(point, self._subject.shape["timed"][0], "search")
            records.append(
                self._path,
                {
                    "id": kernels.fingerprint(fields),
                    **fields,
                    "device": self._subject.device,
                    "versions": {"posattn": self._manifest.version, "halide": self._subject.space.halide},
                    "outcome": "build failed",
                    "detail": str(error),
                },
            )
            return None

    def measure(self, point, built, call_index, round_="search", options=None):
        """Adds a record and returns it."""
        options = options or self._options
        job = make_job(self._manifest, self._subject, point, call_index, round_, options, built, self._baseline)
        job_file, out = self.folder / "job.jsonl", self.folder / "record.jsonl"
        job_file.write_text(json.dumps(job) + "\n")
        out.unlink(missing_ok=True)
        command = [*options.launcher, self._manifest.measure, "jobs", str(job_file), "-o", str(out)]
        result = subprocess.run(command, capture_output=True, text=True)
        measured, complaints = records.read(out)
        if len(measured) != 1:
            complaint = (result.stderr.strip() or " ".join(complaints) or "no record").splitlines()[-1]
            raise kernels.Failed(f"the measuring program failed: {complaint}")
        records.append(self._path, measured[0])
        return measured[0]
