"""The whole loop of the tuner: search, interruption, several processes, terminals."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import unittest

from tuning import KERNEL, QUICK, TIMEOUT, TuningTest, assert_each_measured_once


def searched(records):
    return [record for record in records if record["round"] == "search"]


class LoopTest(TuningTest):
    def test_writes_what_the_build_reads(self):
        out, err = self.run_search(5)
        records = self.records()
        self.assertEqual(len(searched(records)), 5)
        self.assertEqual({record["outcome"] for record in records}, {"ok"})
        self.assertEqual(searched(records)[0]["parameters"], {"task_rows": 64})  # the values by hand come first
        self.assertLess(searched(records)[0]["ratio"], 2)
        self.assertGreater(searched(records)[0]["ratio"], 0.5)
        for record in records:
            self.assertGreater(record["error"]["bound"], record["error"]["max"])
            self.assertEqual(record["versions"]["halide"].count("."), 2)
        entry = self.entry()
        self.assertEqual((entry["kind"], entry["head_dim"], entry["type"]), ("rotary", 0, "f32"))
        self.assertEqual((entry["max_queries"], entry["max_keys"], entry["candidates"]), (0, 0, 5))
        finals = {str(record["parameters"]) for record in records if record["round"] == "final"}
        self.assertEqual(len(finals), 2)
        self.assertTrue(entry["gain"] == 1 or str(entry["parameters"]) in finals)
        self.assertIn("x by hand with task_rows=", out)
        # Nobody watches: a line for each candidate, and no bar.
        self.assertEqual(err.count("] "), 5, err)
        self.assertIn("[5/5]", err)
        self.assertIn("best ", err)
        self.assertNotIn("\r", err)

    def test_goes_on_after_a_kill(self):
        process = self.start_search(8)
        self.wait_for_records(process, 3)
        process.kill()
        process.communicate()
        before = searched(self.records())
        self.assertLess(len(before), 8)
        self.run_search(8)
        after = searched(self.records())
        self.assertEqual(after[: len(before)], before)
        self.assertEqual(len(after), 8)
        assert_each_measured_once(self, after)

    def test_goes_on_without_the_storage(self):
        self.run_search(4, "--search-only")
        for path in self.tuned.glob("studies/*"):
            path.unlink()
        self.run_search(6, "--search-only")
        records = self.records()
        self.assertEqual(len(records), 6)
        assert_each_measured_once(self, records)

    def test_an_interruption_is_no_error_of_the_records(self):
        process = self.start_search(30)
        self.wait_for_records(process, 1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, 130, err)
        self.assertIn("the same command goes on from here", err)
        self.assertNotIn("Traceback", err)

    def test_two_processes_share_a_study(self):
        storage = f"sqlite:///{self.folder}/study.db"
        self.run_search(1, "--search-only", "--storage", storage)  # makes the tables
        processes = [self.start_search(12, "--search-only", "--storage", storage, "--seed", seed) for seed in ("1", "2")]
        errors = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
        self.assertEqual([process.returncode for process in processes], [0, 0], errors)
        for err in errors:
            self.assertIn("/12] ", err)  # each of them measured something
        records = self.records()
        self.assertGreaterEqual(len(records), 12)
        self.assertLessEqual(len(records), 13)  # both may be at the last one
        # A third finds that nothing is left to do.
        self.run_search(12, "--search-only", "--storage", storage)
        self.assertEqual(len(self.records()), len(records))

    def test_a_terminal_gets_a_bar(self):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
        process = self.start(
            "run", *KERNEL, *QUICK, "--candidates", "2", "--search-only", "--tuned", self.tuned, stderr=theirs
        )
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:
                break
        process.communicate(timeout=TIMEOUT)
        os.close(ours)
        self.assertEqual(process.returncode, 0, shown)
        self.assertIn(b"\r", shown)
        self.assertIn(b"2/2", shown)
        self.assertIn(b"best ", shown)
        self.assertNotIn(b"[1/2]", shown)


if __name__ == "__main__":
    unittest.main()
