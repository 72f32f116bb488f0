"""Numbers of a row of logits, and their derivative rules: what losses, maps and divergences are made of."""
