"""Generation: from a prompt to text, one token at a time."""
