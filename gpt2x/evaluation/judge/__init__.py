"""A judge: another language model that reads a model's answers and says how good they are."""
