"""Outcomes of candidates, and records: which ones are taken, which ones are refused, and what survives damage."""

import json
import os
import pathlib
import subprocess
import unittest

import kernels
import measuring
import records
from tuning import KERNEL, MANIFEST, QUICK, TuningTest

FAULTS = {"16": "wrong", "32": "crash", "48": "timeout", "80": "build failed"}


class OutcomesTest(TuningTest):
    def setUp(self):
        super().setUp()
        manifest = kernels.Manifest(MANIFEST)
        faulty = json.loads(pathlib.Path(MANIFEST).read_text())
        for build in faulty["kinds"]["rotary"]["builds"].values():
            build["program"] = os.path.abspath("tests/tune/faulty_generator.py")
        path = self.folder / "manifest.json"
        path.write_text(json.dumps(faulty))
        os.environ["FAULTS"] = json.dumps(FAULTS)
        self.manifest = kernels.Manifest(path)
        device = measuring.device(self.manifest)
        os.environ["REAL_PROGRAM"] = manifest.program("rotary", device["targets"][0])  # one for all
        builds = self.manifest.kinds["rotary"]["builds"]
        target = next(name for name in device["targets"] if "f32" in builds[name]["types"])
        kernel = kernels.Kernel("rotary", 0, "f32", target)
        generator = kernels.Generator(self.manifest, kernel)
        space = generator.space()
        self.subject = records.Subject(kernel, space.shapes["any"], space, "code", device, 1)
        self.path = self.folder / "records.jsonl"
        self.workbench = measuring.Workbench(
            self.manifest, self.subject, generator, self.path, measuring.Options(0.01, 3)
        )
        self.addCleanup(self.workbench.close)

    def outcome(self, task_rows):
        point = {"task_rows": task_rows}
        built = self.workbench.build(point)
        if built:
            self.workbench.measure(point, built, 0)
        return records.read(self.path)[0][-1]

    def test_every_end_is_an_outcome(self):
        for task_rows, expected in FAULTS.items():
            record = self.outcome(int(task_rows))
            self.assertEqual(record["outcome"], expected, record)
            self.assertTrue(record["detail"])
            self.assertNotIn("ratio", record)  # its time does not count
        self.assertEqual(self.outcome(96)["outcome"], "ok")
        all_records, complaints = records.read(self.path)
        self.assertEqual((len(all_records), complaints), (5, []))
        results = records.Results(self.subject, [r | {"code": "code"} for r in all_records])
        self.assertEqual([point for _, point in results.ranked()], [{"task_rows": 96}])
        self.assertEqual(results.failure({"task_rows": 32})["detail"], "Illegal instruction")


class CollectTest(TuningTest):
    def bundle(self):
        """The lines of records of a bundle that was measured where there is no Python."""
        folder = self.folder / "bundle"
        self.tune("bundle", folder, *KERNEL, "--candidates", "3", "--seconds", "0.01")
        bare = {"PATH": "/usr/bin:/bin"}
        subprocess.run([folder / "run.sh"], env=bare, check=True, capture_output=True)
        self.path = folder / "records.jsonl"
        lines = self.path.read_text().splitlines()
        # Again, it has nothing to do.
        subprocess.run([folder / "run.sh"], env=bare, check=True, capture_output=True)
        self.assertEqual(self.path.read_text().splitlines(), lines)
        return lines

    def collect(self, lines, status=0, arguments=()):
        self.path.write_text("\n".join(lines) + "\n")
        return self.tune("collect", self.path, *KERNEL, *arguments, status=status)

    def test_what_is_brought_back(self):
        lines = self.bundle()
        self.assertEqual(len(lines), 3)
        # A file that was cut loses its last line, and nothing is taken twice.
        out, err = self.collect(lines[:2] + [lines[2][:100]])
        self.assertIn("line 3: damaged", err)
        self.assertIn("2 records taken in, 0 refused", out)
        out, _ = self.collect(lines)
        self.assertIn("1 records taken in", out)
        self.assertEqual([json.dumps(r) for r in self.records()], [json.dumps(json.loads(line)) for line in lines])
        self.assertEqual(self.entry()["candidates"], 3)

        # What is not about this kernel, these parameters or this device is refused, and says why.
        record = json.loads(lines[1])
        foreign = {
            "another device": record | {"device": {"fingerprint": "0123", "cpu": "Abacus"}},
            "another kernel": record | {"kernel": record["kernel"] | {"type": "bf16"}},
            "another set of parameters": record | {"space": "0123"},
            "another version of the kernel": record | {"code": "0123"},
            "another shape": record | {"shape": "tall"},
            "2 threads": record | {"threads": 2},
        }
        for reason, changed in foreign.items():
            out, err = self.collect([json.dumps(changed | {"id": "new"})], status=2)
            self.assertIn(reason, err)
            self.assertIn("0 records taken in, 1 refused", out)
        self.assertEqual(len(self.records()), 3)
        for reason, changed in {
            "outcome is missing": {k: v for k, v in record.items() if k != "outcome"},
            "unknown outcome": record | {"outcome": "splendid"},
            "ratio is missing": {k: v for k, v in record.items() if k != "ratio"},
        }.items():
            self.assertIn(reason, self.collect([json.dumps(changed)])[1])
        self.assertEqual(len(self.records()), 3)

        # For another device, if that is what was asked for.
        there = [json.dumps(foreign["another device"] | {"id": "new"})]
        out, _ = self.collect(there, arguments=["--device", "0123"])
        self.assertIn("1 records taken in", out)

    def test_lines_are_whole(self):
        path = self.folder / "some.jsonl"
        records.append(path, {"a": 1})
        path.write_bytes(path.read_bytes() + b'{"b": ')
        records.append(path, {"c": 3})
        self.assertEqual(path.read_text(), '{"a": 1}\n{"b": \n{"c": 3}\n')

    def test_wrong_arguments(self):
        for arguments, complaint in (
            (["--kind", "poem"], "there is no kind 'poem'"),
            (["--kind", "merge", "--head-dim", "64"], "leaves nothing open"),
            (["--kind", "prefill"], "have a --head-dim"),
            (["--kind", "rotary", "--type", "f8"], "there is no type 'f8'"),
            (["--kind", "rotary", "--shape", "tall"], "no class of shapes 'tall'"),
            (["--kind", "rotary", "--target", "mmx"], "there is no target 'mmx'"),
            (["--kind", "rotary", "--device", "0123"], "bundle and collect"),
        ):
            self.assertIn(complaint, self.tune("run", *arguments, status=2)[1])


class SpaceTest(TuningTest):
    def test_points_are_made_of_numbers(self):
        kernel = kernels.Kernel("prefill", 64, "f32", "avx2")
        generator = kernels.Generator(kernels.Manifest(MANIFEST), kernel)
        space = generator.space()
        by_hand, shape = space.by_hand(), space.shapes["long"]
        self.assertEqual(generator.infeasible(by_hand, shape), "")
        numbers = space.numbers(by_hand)
        self.assertEqual(space.point(lambda p: numbers[p.label]), by_hand)
        self.assertIsNone(space.numbers(by_hand | {"row_chunk": by_hand["row_chunk"] + 1}))
        self.assertIsNone(space.numbers(by_hand | {"key_block": 1 << 20}))
        self.assertIsNone(space.numbers(by_hand | {"unheard_of": 1}))
        # Pruned before they are built, and refused by whoever builds them nevertheless.
        tall = by_hand | {"tile_rows": 8, "row_chunk": 48, "query_block": 48}
        self.assertIn("of 16 registers", generator.infeasible(tall, shape))
        with self.assertRaisesRegex(kernels.BuildFailed, "of 16 registers"):
            generator.archive(tall, "tall", self.folder)
        self.assertIn("does not divide", generator.infeasible(by_hand | {"tile_channels": 24}, shape))

    def test_a_class_narrows_the_ranges(self):
        generator = kernels.Generator(kernels.Manifest(MANIFEST), kernels.Kernel("decode", 64, "f32", "avx2"))
        space = generator.space()
        large = space.by_hand() | {"key_block": 1024}
        self.assertEqual(generator.infeasible(large, space.shapes["long"]), "")
        self.assertIn("key_block is more than 512", generator.infeasible(large, space.shapes["short"]))

    def test_pictures(self):
        """Of a search that is made up: what Optuna draws is its own matter."""
        self.tune("run", *KERNEL, *QUICK, "--candidates", "3", "--search-only")
        self.tune("plot", self.folder / "plots", *KERNEL)
        (picture,) = (self.folder / "plots").iterdir()
        self.assertIn("<svg", picture.read_text())


if __name__ == "__main__":
    unittest.main()
