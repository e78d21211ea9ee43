"""Trained networks from Python: embed images, search among them."""
