"""``python -m tests.benchmarks device``: on an accelerator, checks each case against float64, then times it.

Ours, plain and with kernels, the peers and the limits take turns in one process. It prints a line for each
case, and writes device.json, again after every case, and roofline.png. When the budget is used up, it lists
the other cases for --only.
"""

import argparse
import functools
import json
import os
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jsoftmax
from tests.benchmarks import device_cases, device_peers, roofline, timing
from tests.benchmarks.dense import torch

BOUND = 1e-2  # for a relative error in 16 bits
COLD = 2**28  # in bytes: several times the size of the caches
QUICK = {"rows": ((256, 32768),), "heads": ((512, 256, 8192),)}
HEADER = (
    f"{'case':40}{'ours ms':>9}  {'limit':16}{'ms':>9}{'of limit':>9} {'quartiles':12}"
    f"{'best peer':20}{'ms':>9}{'speed-up':>9} {'quartiles':12}{'error':>9}"
)


def copies(arrays, count):
    """The arguments, and enough copies of them that no cache holds all, or as many as asked for."""
    size = sum(a.nbytes for a in arrays)
    count = count or min(16, -(-COLD // size))
    return [arrays, *(jax.tree.map(jnp.copy, arrays) for _ in range(count - 1))]


def prepared(case, sets):
    """All programs to be timed: {who: compiler, its call, its arguments and its temporaries}."""

    def compiled(program):
        program = jax.jit(program).lower(*sets[0]).compile()
        return program, sets, program.memory_analysis().temp_size_in_bytes

    found = {who: functools.partial(compiled, program) for who, program in case.programs().items()}
    if device_peers.has_torch():
        torch.compiler.reset()
        torch.cuda.empty_cache()
        arrays = device_peers.of_torch(sets)
        found |= {who: lambda call=call: (call, arrays, None) for who, call in case.of_torch().items()}
    return found


def quartiles(ratios):
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {"ratio": float(middle), "low": float(low), "high": float(high)}


def checked(case, sets):
    """The calls with correct results, the facts about each, and the reasons why others are not timed."""
    exact = case.exact(*sets[0])
    calls, who, failed = {}, {}, {}
    for name, program in prepared(case, sets).items():
        try:
            call, arrays, temporaries = program()
            results = jax.tree.leaves(call(*arrays[0]))
            parts = case.parts(results, *sets[0])
        except Exception as reason:  # one that runs out of memory, or does not compile, does not end the run
            failed[name] = f"{type(reason).__name__}: {reason}"[:500]
            continue
        error = device_cases.error(parts, exact)
        if error <= BOUND:  # False for NaN
            calls[name] = timing.rotating(device_peers.launched(call, results), arrays)
            who[name] = {"error": error, "temporaries": temporaries}
        else:
            failed[name] = f"an error of {error:.1e}, above {BOUND:.0e}"
    return calls, who, failed


def measured(case, options):
    """The record of a case."""
    sets = copies(case.arrays(), options.copies)
    calls, who, failed = checked(case, sets)
    calls |= {name: timing.rotating(*limit) for name, limit in case.limits(sets).items()}
    sample = 0 if jax.default_backend() == "cpu" else 10
    times = timing.seconds_each(calls, options.seconds, sample=sample)
    limit, least = case.limit(times)
    size, operations = case.work()
    has_kernel = "ours" in who and "kernel" in who

    def rates(milliseconds):
        ms = float(np.median(milliseconds))
        return {"ms": ms, "bytes/s": 1e3 * size / ms, "operations/s": 1e3 * operations / ms}

    for name, record in who.items():
        record |= rates(times[name]) | {"of limit": quartiles(least / times[name])}
    best = min((n for n in who if n not in ("ours", "kernel")), key=lambda n: who[n]["ms"], default=None)
    compared = quartiles(times[best] / times["ours"]) if best and "ours" in who else None
    return {
        "case": case.name,
        **case._asdict(),
        "bytes": size,
        "operations": operations,
        "copies": len(sets),
        "turns": len(least),
        "limit": {"name": limit, **rates(least)},
        "limits ms": {name: float(np.median(t)) for name, t in times.items() if name not in who},
        "who": who,
        "failed": failed,
        "best peer": best,
        "speed-up": compared,
        "kernel, speed-up": quartiles(times["ours"] / times["kernel"]) if has_kernel else None,
    }


def lines(r):
    """The record as text, with the failures below it."""
    spread = "{low:5.2f}-{high:<6.2f}".format
    if "ours" in r["who"]:
        ours, limit = r["who"]["ours"], r["limit"]
        peer = ""
        if r["best peer"]:
            peer = f"{r['best peer']:20}{r['who'][r['best peer']]['ms']:9.3f}{r['speed-up']['ratio']:9.2f} "
            peer += spread(**r["speed-up"])
        yield (
            f"{r['case']:40}{ours['ms']:9.3f}  {limit['name']:16}{limit['ms']:9.3f}"
            f"{ours['of limit']['ratio']:9.2f} {spread(**ours['of limit'])}{peer:51}{ours['error']:9.1e}"
        )
    if r["kernel, speed-up"]:
        kernel, limit = r["who"]["kernel"], r["limit"]
        yield (
            f"{'  with a kernel':40}{kernel['ms']:9.3f}  {limit['name']:16}{limit['ms']:9.3f}"
            f"{kernel['of limit']['ratio']:9.2f} {spread(**kernel['of limit'])}{'ours, plain':20}"
            f"{r['who']['ours']['ms']:9.3f}{r['kernel, speed-up']['ratio']:9.2f} "
            f"{spread(**r['kernel, speed-up']):13}{kernel['error']:9.1e}"
        )
    yield from (f"{r['case']:40} {name} is not timed: {reason}" for name, reason in r["failed"].items())


def selected(cases, texts):
    """The cases with these names, or with names that contain these texts."""
    names = {case.name for case in cases}
    found = {name for text in texts for name in names if name == text or (text not in names and text in name)}
    return [case for case in cases if case.name in found]


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks device", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small shape of each kind, for a trial")
    parser.add_argument(
        "--only", nargs="*", metavar="TEXT", help="cases of these names, or with these in them"
    )
    parser.add_argument("--rows", type=int, nargs=2, metavar=("B", "V"), help="these logits alone")
    parser.add_argument("--head", type=int, nargs=3, metavar=("B", "D", "V"), help="this linear head alone")
    parser.add_argument("--seconds", type=float, default=2, help="for the turns of every case")
    parser.add_argument("--budget", type=float, default=450, help="seconds after which no case is begun")
    parser.add_argument("--copies", type=int, help="of the arguments, in turns; else what caches do not hold")
    parser.add_argument("--out", type=Path, default=Path("jsoftmax-out/benchmarks"))
    options = parser.parse_args(arguments)
    fractions = {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"}
    if torch is not None and not fractions & os.environ.keys():
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.5"  # torch uses the other half of the GPU's memory
    end = time.perf_counter() + options.budget
    shapes = QUICK if options.quick else {}
    if options.rows or options.head:
        shapes = {
            "rows": [options.rows] if options.rows else (),
            "heads": [options.head] if options.head else (),
        }
    chosen = device_cases.cases(**shapes)
    if options.only is not None:
        chosen = selected(chosen, options.only)
    command = "python -m tests.benchmarks device " + shlex.join(arguments)
    machine = timing.machine() | {"jsoftmax": getattr(jsoftmax, "__version__", "not installed")}
    report = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "command": command, "machine": machine}
    report |= {"bound": BOUND, "records": [], "left out": []}
    print(json.dumps(machine), HEADER, sep="\n", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    for case in chosen:
        if time.perf_counter() < end:
            report["records"].append(measured(case, options))
            print(*lines(report["records"][-1]), sep="\n", flush=True)
        else:
            report["left out"].append(case.name)
        (options.out / "device.json").write_text(json.dumps(report, indent=1))
    roofline.draw(report["records"], machine["device"], options.out / "roofline.png")
    if report["left out"]:
        print("left out, the budget is spent: --only", shlex.join(report["left out"]))
    if failed := [r["case"] for r in report["records"] if "ours" in r["failed"]]:
        sys.exit(f"ours failed in: {', '.join(failed)}")
    return report
