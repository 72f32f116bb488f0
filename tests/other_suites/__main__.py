"""Runs other projects' tests of the softmax family with the functions of this package instead of theirs.

    python -m tests.other_suites [--sources DIR] [--jax VERSION] [SUITE ...]

It creates a virtual environment with pinned versions, and runs each suite with their functions, with ours,
and with ours in forward mode. It prints how many tests pass, how often ours were called, and every test whose
outcome differs. The status is 1 if suites.py gives no reason for a difference.

JAX and jaxopt publish no tests: DIR contains clones of their repositories, as DIR/jax and DIR/jaxopt.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from tests.other_suites.suites import EXPECTED, JAX, SUITES, VERSIONS

HERE = Path(__file__).parent
MODES = ("theirs", "ours", "ours, forward mode")


def run(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, **options)


def pip(python, command, *arguments):
    run(python, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *arguments)


def install(environment, jax):
    """The interpreter of an environment with the pinned versions and the current state of this package."""
    python = environment / "bin/python"
    if not python.exists():
        run(sys.executable, "-m", "venv", environment)
    pins = [f"{name}=={version}" for name, version in VERSIONS.items()]
    pip(python, "install", f"jax=={jax}", f"jaxlib=={jax}", *pins)
    pip(python, "install", "--force-reinstall", "--no-deps", HERE.parents[1])
    return python


def clone_of(suite, sources):
    return None if sources is None else sources / suite.project


def what_lacks(suite, version, sources):
    """The step that is missing before a suite can run, or None."""
    if suite.place != "clone":
        return None
    clone, tag = clone_of(suite, sources), suite.tag.format(version)
    wanted = f"git clone --depth 1 --branch {tag} {suite.repository} DIR/{suite.project}"
    if clone is None:
        return f"{suite.project} publishes no tests: {wanted}, and --sources DIR"
    found = subprocess.run(["git", "-C", clone, "rev-parse", "--verify", "--quiet", tag], capture_output=True)
    return f"{clone} has no tag {tag}: {wanted}" if found.returncode else None


def fetch(suite, version, python, sources, folder):
    """The folder with the files of the suite."""
    if suite.place == "wheel":
        asked = (python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        return Path(run(*asked, capture_output=True, text=True).stdout.strip())
    root = folder / f"{suite.project}-{version}"
    if suite.place == "clone":
        for file in suite.files:
            blob = f"{suite.tag.format(version)}:{file}"
            shown = run("git", "-C", clone_of(suite, sources), "show", blob, capture_output=True)
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(shown.stdout)
    elif not root.exists():
        source = ("--no-deps", f"--no-binary={suite.project}", f"{suite.project}=={version}")
        pip(python, "download", *source, "--dest", folder)
        with tarfile.open(root.with_name(f"{root.name}.tar.gz")) as archive:
            archive.extractall(folder, filter="data")
    return root


def outcomes(name, suite, mode, python, root, folder):
    """The report of the plugin after a run of the suite in one mode."""
    plugin, report = folder / "plugin", folder / f"{name}, {mode}.json"
    log = report.with_suffix(".log")
    plugin.mkdir(exist_ok=True)
    (plugin / "in_their_place.py").write_bytes((HERE / "in_their_place.py").read_bytes())
    settings = {
        "FUNCTIONS": mode,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(plugin),
        "REPORT": str(report),
    }
    if suite.project != "jax":  # JAX's own tests fail if there is a cache of programs
        # Programs that the modes have in common are compiled once.
        settings["JAX_COMPILATION_CACHE_DIR"] = str(folder / "programs")
        settings["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        settings["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    command = [
        *(python, "-m", "pytest", "-p", "in_their_place", "-p", "no:cacheprovider"),
        # Leave out their configuration, in particular of warnings: it is not compared.
        *("-c", os.devnull, "--rootdir", root, "--continue-on-collection-errors", "-q"),
        *(("-k", suite.select) if suite.select else ()),
        *(root / file for file in suite.files),
    ]
    with log.open("w") as file:
        subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | settings, cwd=folder)
    if not report.exists():
        sys.exit(f"{name}: pytest wrote no report:\n{log.read_text()[-4000:]}")
    return json.loads(report.read_text())


def compare(name, found):
    """Print the tests that differ, and return the number of differences without a reason."""
    unexplained = 0
    theirs = found["theirs"]["outcomes"]
    for mode in MODES[1:]:
        ours = found[mode]["outcomes"]
        for test in sorted(theirs.keys() | ours.keys()):
            before, after = theirs.get(test, "not run"), ours.get(test, "not run")
            if before == after:
                continue
            error = found[mode]["errors"].get(test, "")
            print(f"  {test}: {before} with theirs, {after} with {mode}")
            if error:
                print(f"    {error}")
            if after == "passed" and before == "failed":
                continue
            reason = next((d.reason for d in EXPECTED if d.explains(name, mode, test, error)), None)
            unexplained += reason is None
            print(f"    {'UNEXPECTED' if reason is None else 'expected: ' + reason}")
    return unexplained


def passed(results):
    return sum(outcome == "passed" for outcome in results["outcomes"].values())


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.other_suites",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; all by default")
    parser.add_argument("--sources", type=Path, metavar="DIR", help="where clones of jax and jaxopt are")
    parser.add_argument("--jax", default=JAX, metavar="VERSION", help=f"by default {JAX}")
    kept = "make the virtual environment there, or use the one there is"
    parser.add_argument("--environment", type=Path, metavar="DIR", help=kept)
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.suites) - set(SUITES)):
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")

    versions = VERSIONS | {"jax": arguments.jax}
    left_out = {}
    for name in arguments.suites or SUITES:
        lack = what_lacks(SUITES[name], versions[SUITES[name].project], arguments.sources)
        if lack and arguments.suites:
            parser.error(f"{name}: {lack}")
        if lack:
            left_out[name] = lack
    names = [name for name in arguments.suites or SUITES if name not in left_out]

    rows, unexplained = [], 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        print("installing", flush=True)
        python = install((arguments.environment or folder / "environment").absolute(), arguments.jax)
        for name in names:
            suite, version = SUITES[name], versions[SUITES[name].project]
            root = fetch(suite, version, python, arguments.sources, folder)
            found = {}
            for mode in MODES:
                begun = time.perf_counter()
                found[mode] = outcomes(name, suite, mode, python, root, folder)
                seconds, tests = time.perf_counter() - begun, len(found[mode]["outcomes"])
                of = f"{passed(found[mode])} passed of {tests}, {seconds:.0f} s"
                print(f"{name} {version}, {mode}: {of}", flush=True)
            calls = found["ours"]["calls"]
            print("  calls of ours:", ", ".join(f"{f} {n}" for f, n in calls.items() if n) or "none")
            if not sum(calls.values()) or not passed(found["theirs"]):
                print("  UNEXPECTED: this suite shows nothing")
                unexplained += 1
            unexplained += compare(name, found)
            sys.stdout.flush()
            rows.append((name, version, found))

    print(f"\nPython {sys.version.split()[0]}, jax {arguments.jax}\n")
    print(f"{'suite':10} {'version':8}{'tests':>6}{'theirs':>8}{'ours':>6}{'forward mode':>14}{'calls':>8}")
    for name, version, found in rows:
        counts = [passed(found[mode]) for mode in MODES]
        tests, called = len(found["theirs"]["outcomes"]), sum(found["ours"]["calls"].values())
        print(f"{name:10} {version:8}{tests:6}{counts[0]:8}{counts[1]:6}{counts[2]:14}{called:8}")
    for name, lack in left_out.items():
        print(f"{name:10} not run: {lack}")
    print(f"\n{unexplained} unexpected differences")
    sys.exit(unexplained > 0)


if __name__ == "__main__":
    main()
