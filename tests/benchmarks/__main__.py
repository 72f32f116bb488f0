"""``python -m tests.benchmarks``: prints the tables, and writes them into a folder as JSON and PNG.

The commands ``device``, for accelerators, ``compile``, for compile times, ``modes``, for what forward mode
costs, ``step``, for a training step, ``several_sums``, ``sampling``, ``segments``, ``sparse_maps``,
``distillation``, ``contrastive``, ``training`` and ``evaluate`` have their own options. With
``--against PATH``, the peer is the package of another checkout, in the same process.
"""

import argparse
import json
import sys
from pathlib import Path

from tests import shapes
from tests.benchmarks import (
    against,
    compiling,
    contrastive,
    dense,
    device,
    distillation,
    evaluating,
    linear,
    modes,
    sampling,
    segments,
    several_sums,
    sparse_maps,
    step,
    timing,
    training,
)

HEADER = (
    f"{'function':22}{'rows':>9} {'classes':>8} {'dtype':9}{'axis':>4} {'regime':7}"
    f"{'ours ms':>9}{'peer ms':>9}"
    f"{'ratio':>7} {'quartiles':12}{'copy':>7}{'max':>7} {'temporaries':14}{'error':>9}{'peer':>9}"
)


def line(r):
    eager = " eager" if r["eager"] else ""
    return (
        f"{r['function']:22}{r['rows']:9} {r['classes']:8} {r['dtype']:9}{r['axis']:4} {r['regime']:7}"
        f"{r['ours']:9.3f}{r['peer']:9.3f}{r['ratio']:7.2f} {r['low']:5.2f}-{r['high']:<6.2f}"
        f"{r['copy']:7.2f}{r['max']:7.2f} {r['temporaries, ours']:6.3f} {r['temporaries, peer']:6.3f} "
        f"{r['error, ours']:9.1e}{r['error, peer']:9.1e} {r['model']}{eager}"
    )


def draw(records, name, label, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5))
    for curve in dict.fromkeys(map(name, records)):
        points = sorted((r["classes"], r["ratio"]) for r in records if name(r) == curve)
        axes.plot(*zip(*points, strict=True), "o", label=curve, markersize=4)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="classes", ylabel=label)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def cells(options):
    if options.quick:
        classes, dtypes, axes = (10, 1000, 32768, 50257, 131072), ("float32",), (-1,)
    else:
        classes, dtypes, axes = shapes.CLASSES, ("float32", "bfloat16"), (-1, 0)
    classes = options.classes or classes
    regimes = options.regimes or dense.REGIMES[: 1 if options.quick else 2]
    yield from dense.grid(options.elements, classes, dtypes, axes, regimes)
    for rows, n in shapes.SMALL:
        for eager in (False, True):
            yield dense.Cell(rows, n, eager=eager)


def heads(options):
    if options.head:
        return [linear.Head(*options.head, trained=options.trained)]
    if options.trained:
        return [linear.Head(2048, d, 32768, trained=True) for d in (512, 1024)]
    if options.quick:
        return [linear.Head(512, 256, 8192)]
    return [linear.Head(2048, 512, 32768), *(linear.Head(2048, 512, n) for n in shapes.VOCABULARIES.values())]


def take_as_peer(path):
    """Another checkout's functions instead of the peers of the dense ones, and beside the heads."""
    others = against.loaded(dense, path).PAIRS
    for name, pair in dense.PAIRS.items():
        dense.PAIRS[name] = pair._replace(peer=others[name].ours)
    linear.LOSSES["against"] = against.loaded(linear, path).ours


def shown(records, header, line):
    print(header)
    kept = []
    for record in records:
        kept.append(record)
        print(line(record), flush=True)
    return kept


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    apart = {
        "device": device,
        "compile": compiling,
        "modes": modes,
        "step": step,
        "sampling": sampling,
        "segments": segments,
        "sparse_maps": sparse_maps,
        "several_sums": several_sums,
        "distillation": distillation,
        "contrastive": contrastive,
        "training": training,
        "evaluate": evaluating,
    }
    if arguments and arguments[0] in apart:
        return apart[arguments[0]].main(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[[], "dense", "linear"], help="these tables; both")
    parser.add_argument("--quick", action="store_true", help="a few shapes, in under two minutes")
    parser.add_argument("--elements", type=int, help="logits in an array; 2**25, or 2**22 if quick")
    parser.add_argument("--classes", type=int, nargs="*", help="these numbers of classes alone")
    parser.add_argument("--regimes", nargs="*", choices=dense.REGIMES, help="unit and peaked; unit if quick")
    parser.add_argument("--functions", nargs="*", choices=dense.PAIRS, default=list(dense.PAIRS))
    parser.add_argument("--head", type=int, nargs=3, metavar=("B", "D", "V"), help="this linear head alone")
    parser.add_argument("--trained", action="store_true", help="heads as those of a trained model alone")
    parser.add_argument("--against", metavar="PATH", help="another checkout, the peer of this one")
    parser.add_argument("--seconds", type=float, default=0.3, help="for every cell")
    parser.add_argument("--out", type=Path, default=Path("jsoftmax-out/benchmarks"))
    options = parser.parse_args(arguments)
    options.elements = options.elements or (2**22 if options.quick else shapes.ELEMENTS)
    print(json.dumps(timing.machine()))
    if options.against:
        take_as_peer(options.against)
    tables = {}
    if "linear" not in options.tables:
        records = (
            r for cell in cells(options) for r in dense.measured(cell, options.functions, options.seconds)
        )
        tables["dense"] = shown(records, HEADER, line)
    if "dense" not in options.tables:
        records = (r for head in heads(options) for r in linear.measured(head, options.seconds))
        tables["linear"] = shown(records, linear.HEADER, linear.line)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, records in tables.items():
        text = json.dumps({"machine": timing.machine(), "records": records}, indent=1)
        (options.out / f"{name}.json").write_text(text)
    if "dense" in tables:
        jitted = [r for r in tables["dense"] if not r["eager"]]
        draw(jitted, lambda r: r["function"], "time, over the peer's", options.out / "dense.png")
    if "linear" in tables:
        path = options.out / "linear.png"
        draw(tables["linear"], lambda r: f"{r['who']}, {r['what']}", "time, over the products'", path)
    return tables


if __name__ == "__main__":
    main()
