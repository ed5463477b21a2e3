"""Training: fold.py tells the story of a run, trainer.py that of the loop."""
