#!/usr/bin/env bash
# torchmetrics 1.9.0: the calibration error has one bin more than n_bins. It holds the confidences of exactly 1.
#
# Ten bins. 100 rows have confidence 0.95 and are all right, 100 have confidence 1 and 90 of them are right. In the last
# of ten bins, the mean confidence is 0.975 and the accuracy 0.95: the error is 0.025, in all three norms. torchmetrics
# has n_bins + 1 bins: torch.bucketize(..., right=True) puts 1, the last edge, behind the last bin. Its gap of 0.1 is
# weighted on its own: 0.075, 0.079 and 0.1. The documentation says that n_bins is the number of bins. In float32, a
# softmax is exactly 1 where the largest logit is ahead by about 17: for a sure classifier, most rows are in this bin.
#
# Prints:
#   confidence 1: l1 0.075, l2 0.079, max 0.100; confidence 0.9999999: l1 0.025, l2 0.025, max 0.025
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/bins.py" <<'PYTHON'
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

rows = torch.arange(200)
target = torch.where(rows < 190, 0, 1)


def errors(sure):
    confidence = torch.where(rows < 100, 0.95, sure)
    p = torch.stack([confidence, 1 - confidence, torch.zeros(200)], 1)
    return [
        float(multiclass_calibration_error(p, target, num_classes=3, n_bins=10, norm=norm)) for norm in ("l1", "l2", "max")
    ]


of_one, below = errors(1.0), errors(1 - 2**-23)
for what, found in (("confidence 1", of_one), ("; confidence 0.9999999", below)):
    print("{}: l1 {:.3f}, l2 {:.3f}, max {:.3f}".format(what, *found), end="")
print()
assert all(abs(error - 0.025) < 1e-6 for error in below)
assert all(error > 0.07 for error in of_one), "changed: a confidence of 1 is in the last of the n_bins bins"
PYTHON

python3 -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check torchmetrics==1.9.0 torch==2.13.0
"$folder/environment/bin/python" "$folder/bins.py"
