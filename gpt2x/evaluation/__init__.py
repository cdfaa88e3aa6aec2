"""Evaluation: how good a trained model is, in numbers."""
