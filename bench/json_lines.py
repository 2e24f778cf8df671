"""Files of JSON lines: runs, each a record of where it ran followed by its rows and ratios."""

import json


def runs_of(path):
    """The runs that a file holds, each a list of records. A damaged line, as an interrupted run leaves it, is skipped."""
    runs = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("kind") == "run":
            runs.append([])
        if runs:
            runs[-1].append(record)
    return runs
