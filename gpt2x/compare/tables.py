"""Tables to read."""

from __future__ import annotations


def short_keys(columns: list[str]) -> dict[str, str]:
    """Each setting's column as the shortest end of its dotted key that only it has: "config.optimizer.lr" is "lr"."""
    keys = {column: column.removeprefix("config.").split(".") for column in columns}
    short = {}
    for column, parts in keys.items():
        for n in range(1, len(parts) + 1):
            end = parts[-n:]
            if n == len(parts) or sum(other[-n:] == end for other in keys.values()) == 1:
                short[column] = ".".join(end)
                break
    return short
