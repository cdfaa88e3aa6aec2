"""Answers judged by another language model: verdicts, what they show, and what stands beside them."""
