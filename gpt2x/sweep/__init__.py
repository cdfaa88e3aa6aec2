"""Many runs with one command: which ones (search.py), and what came of them (table.py). The loop is config/multirun.py."""
