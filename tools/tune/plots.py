"""Pictures of a search."""

import matplotlib

matplotlib.use("Agg")  # files only

import matplotlib.pyplot as plt
import optuna
from optuna.visualization import matplotlib as optuna_plots


def plot(study, title, path):
    """The search, and below it how much each parameter mattered. False if there is too little to show."""
    complete = [t for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE]
    if len(complete) < 2:
        return False
    path.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "_" for c in title)
    optuna_plots.plot_optimization_history(study)
    _save(f"{title}: time / time by hand", path / f"{name}_search.svg")
    if len(study.best_params) > 1 and len(complete) >= 4:
        optuna_plots.plot_param_importances(study)
        _save(f"{title}: what mattered", path / f"{name}_parameters.svg")
    return True


def _save(title, path):
    plt.title(title)
    plt.tight_layout()
    plt.savefig(path)
    plt.close("all")
