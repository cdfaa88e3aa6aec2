"""The model: plain torch modules with plain arguments."""
