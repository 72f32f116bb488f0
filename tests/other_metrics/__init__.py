"""The metrics of other libraries beside those of jsoftmax.evaluation: see ``__main__``."""
