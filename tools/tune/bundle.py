"""Candidates that are built here and measured on another machine, which needs neither Bazel nor Python."""

import json
import pathlib
import shutil

import optuna

import kernels
import measuring

_PROPOSALS_PER_CANDIDATE = 50
_SCRIPT = """#!/bin/sh
# Measures what has no record in records.jsonl yet. Bring that file back: tune collect records.jsonl
cd "$(dirname "$0")" && exec ./measure jobs.jsonl -o records.jsonl
""".replace("measure jobs.jsonl", "measure jobs jobs.jsonl")


def _candidates(space, generator, count, seed):
    """Points that are feasible, the ones chosen by hand first. Random ones: nobody knows yet what is good there."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    points = [space.by_hand()]
    for _ in range(count * _PROPOSALS_PER_CANDIDATE):
        if len(points) >= count:
            break
        trial = study.ask()
        point = space.point(lambda p: trial.suggest_int(p.label, p.low, p.high, step=p.step))
        study.tell(trial, 0.0)
        if point not in points and not generator.infeasible(point):
            points.append(point)
    return points


def write(folder, manifest, subjects, count, seed, options, say):
    """subjects: (Subject, Generator) of each kernel and class of shapes."""
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
    for subject, generator in subjects:
        baseline = library(generator, subject, subject.space.by_hand())
        for point in _candidates(subject.space, generator, count, seed):
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
