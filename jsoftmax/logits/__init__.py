"""Logits as they are computed with: masked, capped, divided by T, and shifted by the maximum of their row."""
