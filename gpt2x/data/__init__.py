"""Data: from a name, an address or a path to batches of token ids."""
