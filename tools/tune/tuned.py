"""schedules/tuned/TARGET.json: what was found, as the build reads it (tools/tuned_schedules.bzl)."""

import fcntl
import json
import os

import records

LEAST_GAIN = 1.01  # less is noise: the values chosen by hand stay


def choose(subject, generator, finals):
    """(point, gain over the values chosen by hand) by the results of the last round."""
    for score, point in finals.ranked():
        if 1 / score < LEAST_GAIN:
            break
        if not generator.infeasible(point, subject.shape):
            return point, 1 / score
    return subject.space.by_hand(), 1.0


def _key(entry):
    return entry["kind"], entry["head_dim"], entry["type"], entry["max_queries"] or 2**31, entry["max_keys"] or 2**31


def write(path, subject, point, gain, candidates):
    """Replaces the kernel's entry for this class of shapes."""
    kernel, shape = subject.kernel, subject.shape
    entry = {
        "kind": kernel.kind,
        "head_dim": kernel.head_dim,
        "type": kernel.type,
        "shape": shape["name"],
        "max_queries": shape["max_queries"],
        "max_keys": shape["max_keys"],
        "parameters": point,
        "gain": round(gain, 3),
        "candidates": candidates,
        "device": records.device_name(subject.device),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # others may be writing other entries
        entries = json.loads(path.read_text())["entries"] if path.exists() else []
        entries = [other for other in entries if _key(other) != _key(entry)] + [entry]
        content = {"target": kernel.target, "entries": sorted(entries, key=_key)}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(path)
    finally:
        os.close(folder)
    return entry
