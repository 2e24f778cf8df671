#!/usr/bin/env python3
"""A generator whose kernels fail in the ways that schedules under search do. The real one's path is in REAL_PROGRAM, and
FAULTS says, as JSON, what becomes of which value of task_rows."""

import json
import os
import pathlib
import subprocess
import sys

# The first float of the last argument's memory; see halide_buffer_t.
_CODE = {
    "wrong": "*(float *)*(void **)((char *)arguments[4] + 16) += 1;",
    "crash": "__builtin_trap();",
    "timeout": "for (volatile int i = 0;; i = 1) {}",
}
_WRAPPER = """
int {name}_real_argv(void **arguments);
const void *{name}_real_metadata(void);
const void *{name}_metadata(void) {{ return {name}_real_metadata(); }}
int {name}_argv(void **arguments) {{
  const int status = {name}_real_argv(arguments);
  {code}
  return status;
}}
"""


def main():
    arguments = sys.argv[1:]
    values = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    fault = json.loads(os.environ["FAULTS"]).get(values.get("task_rows"))
    real = [os.environ["REAL_PROGRAM"]]
    if "-f" not in arguments or not fault:
        os.execv(real[0], real + arguments)
    if fault == "build failed":
        sys.exit("this schedule cannot be compiled")
    at = arguments.index("-f") + 1
    name, folder = arguments[at], pathlib.Path(arguments[arguments.index("-o") + 1])
    arguments[at] = name + "_real"
    subprocess.run(real + arguments, check=True)
    (folder / "wrapper.c").write_text(_WRAPPER.format(name=name, code=_CODE[fault]))
    subprocess.run(["cc", "-fPIC", "-O1", "-c", "wrapper.c"], cwd=folder, check=True)
    archive = folder / f"{name}_real.a"
    subprocess.run(["ar", "rs", archive.name, "wrapper.o"], cwd=folder, check=True, capture_output=True)
    archive.rename(folder / f"{name}.a")


main()
