"""Searches for the parameters of kernels' schedules.

  ./bazelw run //tools:tune -- run --kind prefill --head-dim 64 --candidates 200
  ./bazelw run //tools:tune -- bundle DIR --kind prefill --head-dim 64    # then DIR/run.sh on another machine
  ./bazelw run //tools:tune -- collect DIR/records.jsonl --device FINGERPRINT --kind prefill --head-dim 64

Every candidate is compiled by the generator that the build uses, held against float64, and timed in turns with the
values chosen by hand. What was measured is kept; run it again to go on where it was interrupted.
"""

import argparse
import os
import pathlib
import signal
import sys
import tempfile

import optuna

import kernels
import measuring
import progress
import records
import search
import tuned

_INTERRUPTED = 130


def _parse(arguments):
    parser = argparse.ArgumentParser(
        prog="tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", required=True, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)

    which = argparse.ArgumentParser(add_help=False)
    group = which.add_argument_group("which kernels")
    group.add_argument("--kind", action="append", required=True, help="prefill, decode, ...; may be repeated")
    group.add_argument("--head-dim", action="append", type=int, help="of kinds that have one; may be repeated")
    group.add_argument("--type", action="append", help="f32 (default), bf16, f16; may be repeated")
    group.add_argument("--target", help="by default the best that this machine runs")
    group.add_argument("--shape", action="append", help="a class of shapes; all by default; may be repeated")
    group.add_argument("--branches", default="none", help="that attention is timed with (none)")
    group.add_argument("--threads", type=int, default=1, help="that kernels run on (1)")
    group.add_argument("--tuned", type=pathlib.Path, help="folder of TARGET.json and of the records (schedules/tuned)")
    group.add_argument("--device", help="fingerprint of the device to tune for, if it is not this one")

    how = argparse.ArgumentParser(add_help=False)
    group = how.add_argument_group("how")
    group.add_argument("--candidates", type=int, default=200, help="to measure, for each kernel and class (200)")
    group.add_argument("--seconds", type=float, default=0.3, help="for a measurement (0.3)")
    group.add_argument("--timeout", type=float, default=60, help="seconds until a candidate is killed (60)")
    group.add_argument("--give-up", type=float, default=1.3, help="times the baseline's time at which to stop early (1.3)")
    group.add_argument("--seed", type=int, help="of the search")

    run = commands.add_parser("run", parents=[which, how], help="search, and write what is best for the build to read")
    run.add_argument("--storage", help="Optuna's: a file, or a database's URL, which several machines may share")
    run.add_argument("--launcher", default="", help="command before the measuring program, such as 'taskset -c 1'")
    run.add_argument("--finals", type=int, default=5, help="best candidates to measure again, for longer (5)")
    run.add_argument("--search-only", action="store_true", help="without the finals, and without writing TARGET.json")
    bundle = commands.add_parser("bundle", parents=[which, how], help="build candidates for another machine to measure")
    bundle.add_argument("folder", type=pathlib.Path)
    collect = commands.add_parser("collect", parents=[which], help="take in records of a bundle")
    collect.add_argument("file", type=pathlib.Path)
    plot = commands.add_parser("plot", parents=[which], help="pictures of the search and of what mattered")
    plot.add_argument("folder", type=pathlib.Path)
    commands.add_parser("show", parents=[which], help="what the schedules leave open, and what is known")
    return parser.parse_args(arguments)


def _say(text):
    print(text, file=sys.stderr, flush=True)


def _path(path):
    """As the user meant it: `bazel run` changes the folder."""
    return pathlib.Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."), path)


class Session:
    """What the arguments name."""

    def __init__(self, args):
        self.args = args
        self.manifest = kernels.Manifest(args.manifest)
        # What runs the target here, if anything does: candidates for a GPU are built without one.
        self.here = measuring.device(self.manifest)
        if self.manifest.runs_on_gpu(args.target):
            try:
                self.here = measuring.device(self.manifest, args.target)
            except kernels.Failed as error:
                self.here = {"fingerprint": "", "gpu": f"no GPU ({error})", "cores": 0, "targets": []}
        self.device = self.here
        if args.device and args.device != self.here["fingerprint"]:
            self.device = {"fingerprint": args.device, "cpu": f"device {args.device}", "cores": 0}
        default = pathlib.Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."), "schedules", "tuned")
        self.tuned = _path(args.tuned) if args.tuned else default

    def target(self, known, type_):
        """The one that was asked for, or the best that has kernels of this type."""
        if self.args.target:
            return self.args.target
        builds = known.get("builds", {})
        targets = self.here["targets"]
        return next((t for t in targets if t in builds and type_ in builds[t]["types"]), targets[0])

    def subjects(self):
        """(Subject, Generator) of each kernel and class of shapes."""
        for kind in self.args.kind:
            known = self.manifest.kinds.get(kind, {})
            for head_dim in (self.args.head_dim or [0]) if known.get("head_dim", True) else [0]:
                for type_ in self.args.type or ["f32"]:
                    target = self.target(known, type_)
                    kernel = kernels.Kernel(kind, head_dim, type_, target, self.args.branches)
                    yield from self._classes(kernel)

    def _classes(self, kernel):
        generator = kernels.Generator(self.manifest, kernel)
        space = generator.space()
        with tempfile.TemporaryDirectory() as folder:
            code = kernels.code_fingerprint(generator.archive(space.by_hand(), "baseline", pathlib.Path(folder)))
        for name in self.args.shape or space.shapes:
            if name not in space.shapes:
                raise kernels.Failed(f"{kernel} has no class of shapes '{name}', only {', '.join(space.shapes)}")
            yield (
                records.Subject(kernel, space.shapes[name], space, code, self.device, self.args.threads),
                generator,
            )

    def records_path(self, subject):
        k = subject.kernel
        name = "_".join([k.kind] + ([str(k.head_dim)] if k.head_dim else []) + [k.type, subject.shape["name"]])
        return self.tuned / "records" / k.target / f"{name}.jsonl"

    def storage(self):
        name = getattr(self.args, "storage", None)
        if not name:
            folder = self.tuned / "studies"
            folder.mkdir(parents=True, exist_ok=True)
            name = str(folder / "studies.journal")
        return search.open_storage(name if "://" in name else str(_path(name)))

    def read(self, subject):
        """The records that count; says why others do not."""
        all_records, complaints = records.read(self.records_path(subject))
        good, refused = subject.sort(all_records)
        for complaint in complaints:
            _say(f"ignored: {complaint}")
        for reason, count in refused.items():
            _say(f"ignored: {count} records of {self.records_path(subject)}: {reason}")
        return good


def _finals(session, subject, generator, study, workbench):
    """Measures the best candidates once more, for longer and without luck's help, and writes down the winner."""
    args = session.args
    options = measuring.Options(4 * args.seconds, args.timeout, launcher=args.launcher)
    finals = records.Results(subject, session.read(subject), "final")
    for point in search.best_points(study, subject, generator, args.finals):
        if finals.score(point) is None and not finals.failure(point):
            built = workbench.build(point)
            for index in range(len(subject.shape["timed"])):
                if workbench.measure(point, built, index, "final", options)["outcome"] != "ok":
                    break
    finals = records.Results(subject, session.read(subject), "final")
    point, gain = tuned.choose(subject, generator, finals)
    path = session.tuned / f"{subject.kernel.target}.json"
    tuned.write(path, subject, point, gain, search.count_measured(study))
    text = " ".join(f"{name}={value}" for name, value in point.items())
    print(f"{subject.kernel} {subject.shape['name']}: {gain:.3f} x by hand with {text}", flush=True)


def _run(session):
    args = session.args
    if session.device is not session.here:
        raise kernels.Failed(f"this device is {session.here['fingerprint']}: to tune for another one, bundle and collect")
    subjects = list(session.subjects())  # what is wrong with any of them is said before the first one is measured
    if args.target and args.target not in session.here["targets"]:
        raise kernels.Failed(
            f"this machine does not run {args.target}: "
            f"{records.device_name(session.here)} runs {', '.join(session.here['targets']) or 'no target'}"
        )
    storage = session.storage()
    options = measuring.Options(args.seconds, args.timeout, args.give_up, args.launcher)
    for subject, generator in subjects:
        session.read(subject)
        path = session.records_path(subject)
        study = search.open_study(storage, subject, args.seed)
        workbench = measuring.Workbench(session.manifest, subject, generator, path, options)
        title = f"{subject.kernel} {subject.shape['name']}"
        bar = progress.Progress(title, args.candidates, 0)
        try:
            search.Search(study, subject, generator, workbench, path, bar).run(args.candidates)
            bar.close()
            if not args.search_only:
                _finals(session, subject, generator, study, workbench)
        finally:
            bar.close()
            workbench.close()


def _bundle(session):
    import bundle

    args = session.args
    options = measuring.Options(args.seconds, args.timeout, args.give_up)
    subjects = [
        (subject, generator, records.Results(subject, session.read(subject)))
        for subject, generator in session.subjects()
    ]
    count = bundle.write(
        _path(args.folder), session.manifest, subjects, args.candidates, args.seed, options, _say
    )
    print(f"{count} measurements in {args.folder}: run.sh there makes records.jsonl, which `collect` takes in")


def _collect(session):
    path = _path(session.args.file)
    if not path.exists():
        raise kernels.Failed(f"{path}: there is no such file")
    incoming, complaints = records.read(path)
    for complaint in complaints:
        _say(f"ignored: {complaint}")
    # It is known by more than its fingerprint now.
    devices = {record["device"]["fingerprint"]: record["device"] for record in incoming}
    session.device = devices.get(session.device["fingerprint"], session.device)
    generators = dict(session.subjects())
    subjects = list(generators)
    reasons, added = {}, 0
    for record in incoming:
        why = {subject: subject.why_not(record) for subject in subjects}
        home = next((subject for subject, reason in why.items() if not reason), None)
        if home is None:
            # Of the reasons why it belongs nowhere, the one that got farthest.
            reason = max(why.values(), key=lambda reason: _SEVERITY.index(next(s for s in _SEVERITY if s in reason)))
            reasons[reason] = reasons.get(reason, 0) + 1
            continue
        known = {(r["id"], r["device"]["fingerprint"]) for r in records.read(session.records_path(home))[0]}
        if (record["id"], record["device"]["fingerprint"]) not in known:
            records.append(session.records_path(home), record)
            added += 1
    for reason, count in reasons.items():
        _say(f"refused: {count} records: {reason}")
    print(f"{added} records taken in, {sum(reasons.values())} refused, {len(incoming)} read")
    for subject in subjects:
        results = records.Results(subject, session.read(subject))
        if results.ranked():
            point, gain = tuned.choose(subject, generators[subject], results)
            tuned.write(session.tuned / f"{subject.kernel.target}.json", subject, point, gain, len(results.points()))
            print(f"{subject.kernel} {subject.shape['name']}: {gain:.3f} x by hand with {point}")
    if reasons:
        raise kernels.Failed("some records were refused")


_SEVERITY = ("another kernel", "another shape", "another device", "another set", "another version", "threads", "")


def _plot(session):
    import plots

    for subject, _ in session.subjects():
        study = optuna.create_study(direction="minimize")
        search.import_records(study, subject, records.Results(subject, session.read(subject)))
        title = f"{subject.kernel} {subject.shape['name']}"
        if not plots.plot(study, title, _path(session.args.folder)):
            _say(f"{title}: too few records for a picture")


def _show(session):
    for subject, _ in session.subjects():
        print(f"{subject.kernel} {subject.shape['name']}")
        for p in subject.space.parameters:
            times = f" x {p.times}" if p.times else ""
            print(f"  {p.name}: {p.value} by hand, {p.low} to {p.high} by {p.step}{times}")
        results = records.Results(subject, session.read(subject))
        for score, point in results.ranked()[:3]:
            print(f"  {score:.3f} of the time by hand: {' '.join(f'{n}={v}' for n, v in point.items())}")


_COMMANDS = {"run": _run, "bundle": _bundle, "collect": _collect, "plot": _plot, "show": _show}


def _was_interrupted(error):
    """Also where the interruption became another error on its way: Optuna's, as it let go of its lock, for one."""
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def main(arguments):
    args = _parse(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _COMMANDS[args.command](Session(args))
    except kernels.Failed as error:
        _say(f"tune: {error}")
        return 2
    except BaseException as error:
        if not _was_interrupted(error):
            raise
        _say("interrupted: the same command goes on from here")
        return _INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
