#!/usr/bin/env bash
# netcal 1.4.0 (numpy 2.4.6, scipy 1.17.1): a float32 confidence next to an edge of the bins is counted in one bin, and
# averaged in another.
#
# Ten bins. 100 rows have confidence 0.65 and are wrong, 100 have 0.7 and are right. The expected calibration error is
# 0.175 if all are in one bin, and 0.475 if they are in two. netcal gives 0.65 for float32, more than both: it counts
# rows by numpy.histogramdd, with float64 edges, and averages them by scipy.stats.binned_statistic_dd, which rounds the
# edges to the dtype of the confidences. The float32 number for 0.7 is below the first edge, and on the second. The gap
# of one half is weighted with all 200 rows, the other half is lost. In float64, both are the same bins.
# 100 rows of confidence 0.9 that are all wrong have an error of 0 instead of 0.9.
#
# Prints:
#   float64 0.175, float32 0.650, one bin 0.175, two bins 0.475; 100 wrong rows of confidence 0.9: float64 0.9, float32 0.0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/bins.py" <<'PYTHON'
import numpy as np
from netcal.metrics import ECE

rest = 100  # rows of each kind
confidence, right = np.repeat([0.65, 0.7], rest), np.repeat([0, 1], rest)
of = {dtype: ECE(10).measure(confidence.astype(dtype), right) for dtype in ("float64", "float32")}
one, two = abs((confidence - right).mean()), abs(confidence - right).mean()
both = {dtype: ECE(10).measure(np.full(rest, 0.9, dtype), np.zeros(rest, int)) for dtype in ("float64", "float32")}
print(f"float64 {of['float64']:.3f}, float32 {of['float32']:.3f}, one bin {one:.3f}, two bins {two:.3f}; ", end="")
print(f"100 wrong rows of confidence 0.9: float64 {both['float64']:.1f}, float32 {both['float32']:.1f}")
assert any(np.isclose(of["float64"], want) for want in (one, two))
assert np.isclose(both["float64"], 0.9)
assert np.isclose(of["float32"], 0.65), "changed: 0.7 is no longer counted and averaged in different bins"
assert both["float32"] == 0, "changed: 0.9 is no longer counted and averaged in different bins"
PYTHON

python3 -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check \
    netcal==1.4.0 numpy==2.4.6 scipy==1.17.1 torch==2.13.0
"$folder/environment/bin/python" "$folder/bins.py"
