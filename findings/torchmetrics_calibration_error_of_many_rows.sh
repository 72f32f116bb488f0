#!/usr/bin/env bash
# torchmetrics 1.9.0 (torch 2.13.0, CPU): the calibration error of millions of rows has no correct digit.
#
# All rows have confidence 0.9, and 9 of 10 are right: the error is 0. torchmetrics gives 0.008 for a million rows, and
# 0.03 for four million, as many as the pixels of 16 images of 512 x 512. scatter_add_ adds the confidences of a bin one
# after the other, in float32, and loses their last digits; it counts the rows in float32 too, which stops at 2^24. 20
# million rows with confidence 0.99, of which half are right, have the error 0.404 instead of 0.49.
# multiclass_calibration_error converts float64 to float32 first; binary_calibration_error does not, and is right in
# float64.
#
# Prints:
#   expected 0.00, rows 1000000: float32 0.0080, float64 0.0000, classes 0.0080
#   expected 0.00, rows 4000000: float32 0.0300, float64 0.0000, classes 0.0300
#   expected 0.49, rows 20000000: float32 0.4040, float64 0.4900, classes 0.4040
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/rows.py" <<'PYTHON'
import torch
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

for rows, confidence, of_ten, expected in ((10**6, 0.9, 9, 0), (4 * 10**6, 0.9, 9, 0), (2 * 10**7, 0.99, 5, 0.49)):
    right = (torch.arange(rows) % 10 < of_ten).int()
    wide = torch.full((rows,), confidence, dtype=torch.float64)
    narrow, accurate = (float(binary_calibration_error(p, right)) for p in (wide.float(), wide))
    classes = float(multiclass_calibration_error(torch.stack([1 - wide, wide], 1), right, num_classes=2))
    print(f"expected {expected:.2f}, rows {rows}: float32 {narrow:.4f}, float64 {accurate:.4f}, classes {classes:.4f}")
    assert abs(accurate - expected) < 1e-6
    assert all(abs(error - expected) > 5e-3 for error in (narrow, classes)), "changed: the error has correct digits"
PYTHON

python3 -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check torchmetrics==1.9.0 torch==2.13.0
"$folder/environment/bin/python" "$folder/rows.py"
