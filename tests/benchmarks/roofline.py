"""Draws the performance of a device and its limits."""

import numpy as np

MARKERS = {
    "loss and gradient": ("D", "◆"),
    "loss and gradients": ("D", "◆"),
    "loss": ("v", "▼"),
    "softmax": ("o", "●"),
    "log_softmax": ("s", "■"),
    "softmax and backward": ("P", "✚"),
    "log_softmax and backward": ("X", "✖"),
    "logsumexp": ("^", "▲"),
}


def scatter(panel, records, unit, names):
    """A point for each program of each record, ours filled, by its operations per byte."""
    places = {}
    for r in records:
        places.setdefault(r["operations"] / r["bytes"], []).append(r["function"])
    for colour, name in enumerate(names):
        shown = {"label": name}
        for r in (r for r in records if name in r["who"]):
            place, reached = r["operations"] / r["bytes"], r["who"][name][unit]
            edge = f"C{colour}"
            panel.plot(
                place,
                reached,
                MARKERS[r["function"]][0],
                color=edge,
                markerfacecolor=edge if name == "ours" else "none",
                zorder=3 if name == "ours" else 2,
                **shown,
            )
            shown = {}
    panel.set(xscale="log", yscale="log", ylabel=unit)
    return places


def named(functions):
    return [f"{MARKERS[function][1]} {function}" for function in dict.fromkeys(functions)]


def draw(records, device, path):
    """The bytes moved per second for logits, the operations per second for heads, and the limits as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5))
    logits, heads = ([r for r in records if ("features" in r) == head] for head in (False, True))
    names = dict.fromkeys(name for r in records for name in r["who"])
    bandwidth = max((r["limit"]["bytes/s"] for r in logits), default=np.inf)
    peak = max((r["limit"]["operations/s"] for r in heads), default=np.inf)
    places = scatter(left, logits, "bytes/s", names)
    if logits:
        left.set_xticks(list(places), ["\n".join([f"{at:.3g}", *named(f)]) for at, f in places.items()])
        left.set_xticks([], minor=True)
        left.axhline(bandwidth, color="black", linewidth=1, label="copy, maximum")
    places = scatter(right, heads, "operations/s", names)
    if heads:
        roof = np.geomspace(1, 1e5, 500)
        right.plot(roof, np.minimum(bandwidth * roof, peak), "k-", linewidth=1, label="copy, products")
    left.set_xlabel("operations a byte")
    functions = [function for found in places.values() for function in found]
    right.set_xlabel("\n".join(["operations a byte", *named(functions)]))
    for panel, kind in ((left, logits), (right, heads)):
        if kind:
            panel.legend(fontsize="small")
    figure.suptitle(device)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
