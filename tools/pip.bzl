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
