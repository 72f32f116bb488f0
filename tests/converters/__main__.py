"""Tests whether converters accept the programs of this package, and whether the results are correct.

    python -m tests.converters [--only NAME] [CONVERTER ...]

It creates virtual environments with pinned versions. There it converts every public function, at 16 x 10
logits without a mode and, within jsoftmax.portable(), at all sizes; it runs the results, and compares the
values with the definition in float64. It does the same with the counterparts of JAX and optax. It prints
the error that stops a converter, or the largest relative error and the corner cases of the contract that
are lost, and runs the examples of .docs/pages/deployment.md. The status is 1 if ours stops or is wrong and
theirs is not, and if an example does not print what its comments say.

Core ML has no runtime for Linux: its programs are only converted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.converters.in_turn import WITHIN
from tests.converters.programs import PROGRAMS, SIZES
from tests.converters.routes import JAX, ROUTES, SHARED
from tests.pinned import examples, install, problem, run

SECONDS = 600  # for each program


def outcomes(python, route, asked, folder):
    """The outcome of each program, including programs that end the process."""
    file, log = folder / "outcomes", folder / "log"
    run(python, "-c", "import tests.converters.in_turn", check=True)
    found = []
    while len(found) < len(asked):
        rest = asked[len(found) :]
        file.write_text("")
        command = ("-m", "tests.converters.in_turn", route, file, str(SECONDS))
        with log.open("w") as output:
            told = {"input": json.dumps(rest), "stdout": output, "stderr": subprocess.STDOUT}
            status = run(python, *command, **told).returncode
        lines = file.read_text().splitlines()
        found += [json.loads(line) for line in lines]
        if len(lines) < len(rest):
            end = f"signal {-status}" if status < 0 else f"status {status}, perhaps after {SECONDS} s"
            found.append({"stops": f"the process ends with {end}"})
    return found


def fails(outcome):
    return "stops" in outcome or (outcome["error"] or 0) > WITHIN


def cell(outcome):
    if outcome is None:
        return "-"
    if "stops" in outcome:
        return f"STOPS: {outcome['stops'][:150]}"
    if outcome["error"] is None:
        return "converts"
    lost = f", loses {', '.join(outcome['lost'])}" if outcome["lost"] else ""
    return f"{'WRONG' if fails(outcome) else 'ok'} {outcome['error']:.0e}{lost}"


def rows_of(route, modes, names, found):
    """A row for each size and function: ours and theirs, and whether only ours fails."""
    for size, portable in modes:
        for name in names:
            ours, theirs = found["ours", name, size, portable], found.get(("twin", name, size, False))
            alone = fails(ours) and theirs is not None and not fails(theirs)
            yield route, f"{size}{', portable' * portable}", name, ours, theirs, alone


def options():
    """The options: arguments, names of programs, sizes and modes."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.converters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    listed = f"of {', '.join(ROUTES)}; all by default"
    parser.add_argument("converters", nargs="*", metavar="CONVERTER", help=listed)
    parser.add_argument("--only", action="append", metavar="NAME", help="a function; may be given again")
    parser.add_argument("--size", action="append", choices=SIZES, help="may be given again; all by default")
    parser.add_argument("--jax", default=JAX, metavar="VERSION", help=f"by default {JAX}")
    kept = "make the virtual environments there, or use those there are"
    parser.add_argument("--environments", type=Path, metavar="DIR", help=kept)
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.converters) - set(ROUTES)):
        parser.error(f"no converter {', '.join(unknown)}; there are {', '.join(ROUTES)}")
    functions = dict.fromkeys(name.split(",")[0] for name in PROGRAMS)
    if unknown := sorted(set(arguments.only or ()) - set(functions)):
        parser.error(f"no function {', '.join(unknown)}; there are {', '.join(functions)}")
    names = [name for name in PROGRAMS if name.split(",")[0] in (arguments.only or functions)]

    sizes = arguments.size or list(SIZES)
    modes = [(size, False) for size in sizes if size == next(iter(SIZES))]
    modes += [(size, True) for size in sizes]
    return arguments, names, modes


def main():
    arguments, names, modes = options()
    ours = [("ours", name, size, portable) for size, portable in modes for name in names]
    twins = [("twin", n, size, False) for size in dict(modes) for n in names if PROGRAMS[n].twin]
    asked = ours + twins

    rows, examples_say, codes = [], {}, examples("deployment.md")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        environments = (arguments.environments or folder).absolute()
        for route in arguments.converters or ROUTES:
            begun = time.perf_counter()
            own = ROUTES[route].versions
            python = install(environments / ("-".join(own) or "jax"), {"jax": arguments.jax} | SHARED | own)
            found = dict(zip(asked, outcomes(python, route, asked, folder), strict=True))
            rows += rows_of(route, modes, names, found)
            examples_say[route] = problem(python, codes[ROUTES[route].heading])
            print(f"{route}: {len(asked)} programs, {time.perf_counter() - begun:.0f} s", flush=True)

    versions = {name: version for route in ROUTES.values() for name, version in route.versions.items()}
    print(f"\nPython {sys.version.split()[0]}, jax {arguments.jax}, {versions}\n")
    print(f"  {'converter':12}{'size':22}{'function':43}{'theirs':56}ours")
    for route, size, name, mine, theirs, alone in rows:
        mark = "!" if alone else " "
        print(f"{mark} {route:12}{size:22}{name:43}{cell(theirs):55} {cell(mine)}")
    wrong = {route: said for route, said in examples_say.items() if said}
    for route, said in wrong.items():
        print(f"! {route:12}the example of the page: {said}")
    count = sum(alone for *_, alone in rows)
    print(
        f"\nours alone fails {count} times in {len(rows)}; {len(wrong)} of {len(examples_say)} examples fail"
    )
    sys.exit(count + len(wrong) > 0)


if __name__ == "__main__":
    main()
