"""Numbers of a row of logits and their derivative rules: the basis of losses, maps and divergences."""
