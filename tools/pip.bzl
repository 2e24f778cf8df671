"""Downloads one wheel of the Python package index, whatever index the user's own pip configuration names."""

def pip_install(rctx, distribution, version, sha256, python_version = "3.12"):
    """Unpacks a wheel into the folder `wheel` of the repository that is being made.

    pip picks the wheel of this host and refuses any file whose hash is not listed.

    Args:
      rctx: the repository rule's context.
      distribution: name on the index.
      version: exact.
      sha256: of the wheels that are accepted, one for each supported platform.
      python_version: the Python that the wheel is for. No Python code of a wheel ever runs here, so any will do,
        whatever Python runs pip; it only has to be the one that was hashed.

    Returns:
      The path of the folder.
    """
    requirement = "{}=={}".format(distribution, version)
    python = rctx.which("python3") or rctx.which("python")
    if not python:
        fail("{} is a Python wheel: install python3 and pip.".format(requirement))
    rctx.file("requirements.txt", " ".join([requirement] + ["--hash=sha256:" + hash for hash in sha256]))
    rctx.report_progress("Fetching the wheel " + requirement)
    install = rctx.execute(
        [
            python,
            "-m",
            "pip",
            "install",
            "--require-hashes",
            "--requirement=requirements.txt",
            "--target=wheel",
            "--python-version=" + python_version,
            "--only-binary=:all:",
            "--no-deps",
            "--no-compile",
            "--disable-pip-version-check",
        ],
        timeout = 1800,
    )
    if install.return_code:
        fail("pip could not install {}:\n{}{}".format(requirement, install.stdout, install.stderr))
    return rctx.path("wheel")

def _python_packages_impl(rctx):
    python = rctx.which("python3") or rctx.which("python")
    if not python:
        fail("Python packages are needed: install python3 and pip.")

    # The program itself, where that is a script which looks for one.
    python = rctx.execute([python, "-c", "import sys; print(sys.executable)"]).stdout.strip()
    rctx.report_progress("Fetching Python packages")
    install = rctx.execute(
        [
            python,
            "-m",
            "pip",
            "install",
            "--require-hashes",
            "--requirement=%s" % rctx.path(rctx.attr.requirements),
            "--target=packages",
            "--only-binary=:all:",
            "--disable-pip-version-check",
        ],
        timeout = 1800,
    )
    if install.return_code:
        fail("pip could not install the packages:\n{}{}".format(install.stdout, install.stderr))
    rctx.symlink(python, "python")
    rctx.file("BUILD.bazel", 'exports_files(["packages", "python"], visibility = ["//visibility:public"])\n')

python_packages = repository_rule(
    implementation = _python_packages_impl,
    doc = "A repository of a folder, `packages`, with what a requirements file pins, for the host's own `python`.",
    attrs = {"requirements": attr.label(allow_single_file = True, mandatory = True)},
)
