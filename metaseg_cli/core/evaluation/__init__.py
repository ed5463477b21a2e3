"""Score systems: a model on prepared cases that it has not seen, or a folder of masks against references."""
