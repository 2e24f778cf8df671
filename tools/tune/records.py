"""What was measured: a JSON object a line. Lines are only ever added, so a crash costs the last one at most."""

import fcntl
import json
import os
import statistics

FIELDS = ("id", "round", "kernel", "shape", "space", "code", "parameters", "call", "threads", "device", "versions", "outcome")
OUTCOMES = ("ok", "wrong", "crash", "timeout", "error", "build failed")


def append(path, record):
    """As append() of measure.cpp does: in one piece, and on a line of its own even if the last one was cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        line = json.dumps(record).encode() + b"\n"
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)


def read(path):
    """(records, complaints): a complaint for every line that is no record."""
    records, complaints = [], []
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            problem = _problem(record)
        except ValueError:
            problem = "damaged"
        if problem:
            complaints.append(f"{path}: line {number}: {problem}")
        else:
            records.append(record)
    return records, complaints


def _problem(record):
    if not isinstance(record, dict):
        return "no record"
    missing = [field for field in FIELDS if field not in record]
    if missing:
        return f"no record: {missing[0]} is missing"
    if record["outcome"] not in OUTCOMES:
        return f"unknown outcome '{record['outcome']}'"
    if record["outcome"] == "ok" and not (isinstance(record.get("ratio"), float) and record["ratio"] > 0):
        return "no record: ratio is missing"
    return ""


def device_name(device):
    """For people."""
    return device.get("gpu") or device.get("cpu")


class Subject:
    """What records must be about to count: one kernel as it is now, one class of shapes, one device."""

    def __init__(self, kernel, shape, space, code, device, threads):
        self.kernel, self.shape, self.space, self.code = kernel, shape, space, code
        self.device, self.threads = device, threads

    def why_not(self, record):
        """The reason to refuse a record; "" if it counts."""
        if record["kernel"] != self.kernel.as_json():
            theirs = record["kernel"]
            return f"it is of another kernel, {' '.join(str(theirs.get(n)) for n in ('target', 'kind', 'head_dim', 'type', 'branches'))}"
        if record["shape"] != self.shape["name"] or record["call"] not in self.shape["timed"]:
            return f"it is of another shape, {record['shape']} {record['call']}"
        if record["device"].get("fingerprint") != self.device["fingerprint"]:
            return (
                f"it is from another device, {device_name(record['device'])} "
                f"({record['device'].get('fingerprint')}); "
                f"this is {device_name(self.device)} ({self.device['fingerprint']})"
            )
        if record["space"] != self.space.fingerprint or self.space.numbers(record["parameters"]) is None:
            return "it is of another set of parameters"
        if record["code"] != self.code:
            return f"it is of another version of the kernel, {record['code']}; this is {self.code}"
        if record["threads"] != self.threads:
            return f"it is for {record['threads']} threads; this is for {self.threads}"
        return ""

    def fields(self, point, call, round_):
        """The part of a record that says what it is about."""
        return {
            "round": round_,
            "kernel": self.kernel.as_json(),
            "shape": self.shape["name"],
            "space": self.space.fingerprint,
            "code": self.code,
            "parameters": point,
            "call": call,
            "threads": self.threads,
        }

    def sort(self, records):
        """(those that count, reasons of the others with how many there are)."""
        good, refused = [], {}
        for record in records:
            reason = self.why_not(record)
            if reason:
                refused[reason] = refused.get(reason, 0) + 1
            else:
                good.append(record)
        return good, refused


def key(point):
    return tuple(sorted(point.items()))


class Results:
    """Records of one subject, by point and call."""

    def __init__(self, subject, records, round_="search"):
        self._calls = subject.shape["timed"]
        self._by_point = {}
        for record in records:
            if record["round"] == round_:
                self._by_point.setdefault(key(record["parameters"]), {})[self._calls.index(record["call"])] = record

    def points(self):
        return [dict(point) for point in self._by_point]

    def of(self, point, call_index):
        return self._by_point.get(key(point), {}).get(call_index)

    def ratios(self, point):
        """Of the calls in order, up to the first that has none."""
        ratios = []
        for index in range(len(self._calls)):
            record = self.of(point, index)
            if record is None or record["outcome"] != "ok":
                break
            ratios.append(record["ratio"])
        return ratios

    def failure(self, point):
        """A record of the point that is not ok, or None."""
        return next((r for r in self._by_point.get(key(point), {}).values() if r["outcome"] != "ok"), None)

    def score(self, point):
        """Candidate's time / time by hand, over all calls; None if some is missing or failed."""
        ratios = self.ratios(point)
        return statistics.geometric_mean(ratios) if len(ratios) == len(self._calls) else None

    def ranked(self):
        scores = [(self.score(point), point) for point in self.points()]
        return sorted((s for s in scores if s[0] is not None), key=lambda s: (s[0], sorted(s[1].items())))
