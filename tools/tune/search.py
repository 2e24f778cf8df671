"""The search for one kernel and class of shapes: Optuna proposes, the workbench measures, records remember.

Several processes may share a study through Optuna's storage; each builds and measures what it was given. Records are
what counts: a study that lacks some of them, because another machine made them or its storage was lost, is told.
"""

import optuna

import records

_PROPOSALS_PER_CANDIDATE = 50  # infeasible ones and repetitions included: a small space may have no more


def open_storage(name):
    """A database's URL, or a file of Optuna's journal."""
    if "://" in name:
        return optuna.storages.RDBStorage(name)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(name))


def study_name(subject):
    parts = (subject.kernel, subject.kernel.branches, subject.shape["name"], f"{subject.threads} threads")
    return " / ".join([*map(str, parts), subject.space.fingerprint, subject.code, subject.device["fingerprint"]])


def sampler(seed):
    # constant_liar: what others are at is avoided.
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def open_study(storage, subject, seed):
    return optuna.create_study(
        study_name=study_name(subject),
        storage=storage,
        load_if_exists=True,
        direction="minimize",
        sampler=sampler(seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=10),
    )


def _distributions(space):
    return {p.label: optuna.distributions.IntDistribution(p.low, p.high, step=p.step) for p in space.parameters}


def _done(trial):
    """Not one that a kill or an interruption left on its way, whose records are another trial's after it."""
    return trial.state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)


def _measured(trial):
    return _done(trial) and "outcome" in trial.user_attrs


def count_measured(study):
    return sum(map(_measured, study.get_trials(deepcopy=False)))


def best_points(study, subject, generator, count):
    """Of all processes of the study, the best first."""
    complete = [t for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE]
    points = []
    for trial in sorted(complete, key=lambda trial: trial.value):
        point = subject.space.point(lambda p: trial.params[p.label])
        # Rules may have come since it was measured.
        if point not in points and not generator.infeasible(point, subject.shape):
            points.append(point)
        if len(points) == count:
            break
    return points


def import_records(study, subject, results):
    """Adds trials for the points that have records but no trial."""
    known = {records.key(trial.params) for trial in study.get_trials(deepcopy=False) if _done(trial)}
    for point in results.points():
        numbers = subject.space.numbers(point)
        if records.key(numbers) in known:
            continue
        score, failure, ratios = results.score(point), results.failure(point), results.ratios(point)
        state = optuna.trial.TrialState
        study.add_trial(
            optuna.trial.create_trial(
                params=numbers,
                distributions=_distributions(subject.space),
                value=score,
                state=state.COMPLETE if score is not None else state.PRUNED,
                intermediate_values=dict(enumerate(ratios)) if score is None else {},
                user_attrs={"outcome": failure["outcome"] if failure else "ok" if score is not None else "pruned"},
            )
        )


class Search:
    def __init__(self, study, subject, generator, workbench, records_path, progress):
        self._study, self._subject, self._generator = study, subject, generator
        self._workbench, self._path, self._progress = workbench, records_path, progress

    def _results(self):
        good, _ = self._subject.sort(records.read(self._path)[0])
        return records.Results(self._subject, good)

    def run(self, candidates):
        """Until so many candidates are measured, by all processes of the study."""
        space = self._subject.space
        import_records(self._study, self._subject, self._results())
        # Its own time against itself: how much is noise.
        self._study.enqueue_trial(space.numbers(space.by_hand()), skip_if_exists=True)
        for _ in range(_PROPOSALS_PER_CANDIDATE * candidates):
            if count_measured(self._study) >= candidates:
                return
            trial = self._study.ask()
            try:
                self._try(trial)
            except BaseException:
                # An interruption may have come just after it was told.
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
                raise
        self._progress.say("the space has no more candidates")

    def _try(self, trial):
        pruned = optuna.trial.TrialState.PRUNED
        point = self._subject.space.point(
            lambda p: trial.suggest_int(p.label, p.low, p.high, step=p.step)
        )
        reason = self._generator.infeasible(point, self._subject.shape)
        if reason:
            trial.set_user_attr("infeasible", reason)
            self._study.tell(trial, state=pruned)
            return
        results = self._results()
        again = any(
            records.key(other.params) == records.key(trial.params) and _measured(other)
            for other in self._study.get_trials(deepcopy=False)
            if other.number != trial.number
        )
        outcome = self._measure(trial, point, results)
        if not again:
            trial.set_user_attr("outcome", outcome)
        results = self._results()
        score = results.score(point)
        if outcome == "ok":
            self._study.tell(trial, score)
        else:
            self._study.tell(trial, state=pruned)
        if not again:
            text = " ".join(f"{name}={value}" for name, value in point.items())
            what = f"{text}: {score:.3f}" if outcome == "ok" else f"{text}: {outcome}"
            ranked = results.ranked()
            self._progress.candidate(what, ranked[0][0] if ranked else None, count_measured(self._study))

    def _measure(self, trial, point, results):
        """The outcome, from records where there are some."""
        built = None
        try:
            for index in range(len(self._subject.shape["timed"])):
                record = results.failure(point) or results.of(point, index)
                if record is None:
                    built = built or self._workbench.build(point)
                    if built is None:
                        return "build failed"
                    record = self._workbench.measure(point, built, index)
                if record["outcome"] != "ok":
                    self._progress.say(f"{record['outcome']}: {record.get('detail', '')[:300]}")
                    return record["outcome"]
                trial.report(record["ratio"], index)
                if index + 1 < len(self._subject.shape["timed"]) and trial.should_prune():
                    return "pruned"
            return "ok"
        finally:
            if built:
                built[0].unlink()
