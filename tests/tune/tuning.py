"""What the tests of the tuner share: the program, as a user runs it, on a kernel that compiles in a moment."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = os.environ.get("POSATTN_TUNE", "tools/tune/tune")  # where Bazel puts it
MANIFEST = "tools/tune/manifest.json"
KERNEL = ["--kind", "rotary"]
QUICK = ["--seconds", "0.01", "--finals", "2", "--seed", "1"]
TIMEOUT = 240


class TuningTest(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR"))
        self.addCleanup(self._folder.cleanup)
        self.folder = pathlib.Path(self._folder.name)
        self.tuned = self.folder / "tuned"

    def start(self, command, *arguments, **kwargs):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BUILD_")}
        line = [PROGRAM, command, *map(str, arguments)]
        kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment} | kwargs
        return subprocess.Popen(line, **kwargs)

    def tune(self, command, *arguments, status=0):
        """stdout, stderr"""
        process = self.start(command, *arguments, "--tuned", self.tuned)
        out, err = process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, status, err + out)
        return out, err

    def run_search(self, candidates, *arguments):
        return self.tune("run", *KERNEL, *QUICK, "--candidates", candidates, *arguments)

    def start_search(self, candidates, *arguments):
        return self.start("run", *KERNEL, *QUICK, "--candidates", candidates, "--tuned", self.tuned, *arguments)

    def records_path(self):
        found = list(self.tuned.glob("records/*/rotary_f32_any.jsonl"))
        return found[0] if found else None

    def records(self):
        path = self.records_path()
        if not path:
            return []
        lines = path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]

    def wait_for_records(self, process, count):
        end = time.monotonic() + TIMEOUT
        while len(self.records()) < count:
            self.assertIsNone(process.poll(), "it ended too early")
            self.assertLess(time.monotonic(), end)
            time.sleep(0.02)

    def entry(self):
        (path,) = self.tuned.glob("*.json")
        (entry,) = json.loads(path.read_text())["entries"]
        return entry


def assert_each_measured_once(test, records):
    ids = [record["id"] for record in records]
    test.assertEqual(len(ids), len(set(ids)), "something was measured twice")
