"""Candidates that are built here and measured on another machine, which needs neither Bazel nor Python."""

import json
import pathlib
import shutil

import optuna

import kernels
import measuring
import search

_PROPOSALS_PER_CANDIDATE = 10  # those that are infeasible, or known, included
_SCRIPT = """#!/bin/sh
# Measures what has no record in records.jsonl yet. Bring that file back: tune collect records.jsonl
cd "$(dirname "$0")" && exec ./measure jobs jobs.jsonl -o records.jsonl
"""


def _candidates(subject, generator, count, seed, results):
    """Feasible points that the device has not measured, the ones chosen by hand first: random ones at first, and once
    records have come back those that they speak for."""
    space = subject.space
    study = optuna.create_study(sampler=search.sampler(seed))
    search.import_records(study, subject, results)
    known = results.points()
    points = [] if space.by_hand() in known else [space.by_hand()]
    for _ in range(count * _PROPOSALS_PER_CANDIDATE):
        if len(points) >= count:
            break
        trial = study.ask()
        point = space.point(lambda p: trial.suggest_int(p.label, p.low, p.high, step=p.step))
        if generator.infeasible(point, subject.shape):
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif point not in points and point not in known:
            points.append(point)  # its trial stays open: the next ones keep away from it
    return points


def write(folder, manifest, subjects, count, seed, options, say):
    """subjects: (Subject, Generator, Results) of each kernel and class of shapes."""
    folder = pathlib.Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise kernels.Failed(f"{folder}: there is something in it already")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(manifest.measure, folder / "measure")
    script = folder / "run.sh"
    script.write_text(_SCRIPT)
    script.chmod(0o755)
    built = {}

    def library(generator, subject, point):
        symbol = "candidate_" + kernels.fingerprint([subject.kernel.as_json(), point])
        if symbol not in built:
            built[symbol] = generator.library(point, symbol, folder)
        return built[symbol].name, symbol

    jobs = []
    for subject, generator, results in subjects:
        baseline = library(generator, subject, subject.space.by_hand())
        for point in _candidates(subject, generator, count, seed, results):
            try:
                candidate = library(generator, subject, point)
            except kernels.BuildFailed as error:
                say(f"build failed: {point}: {error}")
                continue
            for index in range(len(subject.shape["timed"])):
                jobs.append(measuring.make_job(manifest, subject, point, index, "search", options, candidate, baseline))
        say(f"{subject.kernel} {subject.shape['name']}: {len(jobs)} measurements so far")
    (folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    return len(jobs)
