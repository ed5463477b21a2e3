"""From a trained network and an image to probabilities, masks and lesions."""
