"""Prepares logits: masks them, caps them, divides them by T, and shifts them by the maximum of their row."""
