"""Where and with what a benchmark ran."""

import datetime
import importlib.metadata
import os
import platform
import subprocess


def _cpu_model():
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit():
    """Of the workspace, "+" if it has changes other than results; "" outside of one."""
    folder = os.environ.get("BUILD_WORKSPACE_DIRECTORY")
    if not folder:
        return ""
    try:
        git = ["git", "-C", folder]
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!bench/results"], capture_output=True)
        return head.stdout.strip() + ("+" if changes.returncode else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _versions(*names):
    """Of the packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def available_cores():
    return len(os.sched_getaffinity(0))


def describe(library):
    import torch

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "posattn": library.version,
        "commit": commit(),
        "target": library.current_target(),
        "versions": {
            "python": platform.python_version(),
            "torch": f"{torch.__version__} ({torch.backends.cpu.get_cpu_capability()})",
            **_versions("openvino", "onnxruntime", "symm-learning", "espnet", "numpy"),
        },
    }
