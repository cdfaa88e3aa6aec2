"""The report on judged answers (items.py): plain numbers, a table of text, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2x.errors import UserError
from gpt2x.evaluation.judge import companions, statistics
from gpt2x.evaluation.judge.items import (
    Item,
    error,
    failed,
    have_answers,
    judge,
    lengths,
    listed,
    ordered,
    parts,
    requests,
    scale_of,
    scores,
)
from gpt2x.evaluation.output import cut, number, score, table
from gpt2x.evaluation.rouge import foreign
from gpt2x.files import replacing

_BAR = 40  # characters of the longest bar of a distribution
_TOLD = 5  # failures that are told one by one


def summarise(
    items: Sequence[Item],
    *,
    on_failure: str = "exclude",
    within: float | None = None,
    bootstrap: int = 1000,
    seed: int = 1,
) -> dict[str, Any]:
    """All that is told of judged items, as numbers that can be written as JSON.

    Where the judge failed, an answer is left out of the means ("exclude"), has the lowest score or, of a pair, is lost for a
    ("lowest"), or a UserError says which these are ("raise"); the others are counted and listed in any case. `within` are
    points of the agreement with given scores; None: a tenth of the scale, at least 1.

    kind, judge          "absolute" or "pairwise", and the judge's name
    items                how many there are; among them those "scored", "failed", "retried" (asked more than once) and "cached"
    failures             {"id", "error"} of those
    seconds              {"median", "total"} of the requests that were made; None where all came from the cache
    and of absolute ones
    scale, score         the scale, and the mean of the scores
    median, deviation    of the scores (standard deviation)
    bounds               {"low", "high"}: what the mean of all could be, whatever the failed ones had scored; None without any
    distribution         see statistics.distribution
    length               Spearman's correlation of score and words
    companions           see companions.parts; None where only scores are known
    given                agreement (statistics.agreement) with the scores that items have as "given"; None without any
    or of pairwise ones  what statistics.pairwise tells, and
    length_controlled    the win rate of a at equal lengths in words: statistics.length_controlled
    companions           of "a" and of "b"
    """
    items = ordered(items)
    failures = [{"id": item.get("id"), "error": error(item)} for item in items if failed(item)]
    if failures and on_failure == "raise":
        raise UserError(
            f"{len(failures):,} of {len(items):,} answers were not judged: {listed([row['id'] for row in failures])}\n"
            f"  The first: {failures[0]['error']}\n  Try it again, or leave them out by on_failure=exclude."
        )
    seconds = [r["latency_s"] for item in items for r in requests(item) if not r.get("cached") and r.get("latency_s")]
    pairs, settings = "orders" in items[0], {"bootstrap": bootstrap, "seed": seed}
    about = {
        "kind": "pairwise" if pairs else "absolute",
        "judge": judge(items),
        "items": len(items),
        "scored": len(items) - len(failures),
        "failed": len(failures),
        "retried": sum(any(r.get("attempts", 1) > 1 for r in requests(item)) for item in items),
        "cached": sum(all(r.get("cached", False) for r in requests(item)) for item in items),
        "on_failure": on_failure,
        "failures": failures,
        "seconds": {"median": float(np.median(seconds)), "total": float(sum(seconds))} if seconds else None,
        "bootstrap": bootstrap,
    }
    foreign([(item["reference"],) for item in items if item.get("reference")])  # which it warns of
    if pairs:
        return about | _pairwise(items, 0.0 if on_failure == "lowest" else None, settings)
    return about | _absolute(items, on_failure, within, settings)


def tolerance(scale: Sequence[float], within: float | None) -> float:
    """Points that two scores may be apart and still agree: `within`, or a tenth of the scale, at least 1."""
    return max(1.0, (scale[1] - scale[0]) / 10) if within is None else within


def _absolute(items: list[Item], on_failure: str, within: float | None, settings: dict[str, int]) -> dict[str, Any]:
    lower, upper = scale = scale_of(items)
    found, words = scores(items), lengths(items)
    good = ~np.isnan(found)
    counted = np.where(good, found, lower) if on_failure == "lowest" else found[good]
    least, most = (float(np.where(good, found, end).mean()) for end in scale)
    given = np.array([np.nan if item.get("given") is None else item["given"] for item in items], dtype=float)
    both = good & ~np.isnan(given)
    agreed = None
    if both.any():
        points = {"within": tolerance(scale, within), "span": upper - lower}
        agreed = statistics.agreement(found[both], given[both], **points, **settings)
    return {
        "scale": list(scale),
        "score": statistics.mean(counted, lower=lower, upper=upper, **settings),
        "median": float(np.median(counted)) if len(counted) else None,
        "deviation": float(counted.std(ddof=1)) if len(counted) > 1 else None,
        "bounds": None if good.all() else {"low": least, "high": most},
        "distribution": statistics.distribution(found[good], scale),
        "length": statistics.spearman(found[good], words[good], **settings),
        "companions": companions.summary(parts(items), **settings) if have_answers(items) else None,
        "given": agreed,
    }


def _pairwise(items: list[Item], failed_as: float | None, settings: dict[str, int]) -> dict[str, Any]:
    orders = [item["orders"] for item in items]
    preferences = statistics.preference(map(statistics.verdict, orders), failed_as)
    known = ~np.isnan(preferences)
    words = [lengths(items, f"answer_{side}")[known] for side in ("a", "b")]
    return statistics.pairwise(orders, failed_as=failed_as, **settings) | {
        "length_controlled": statistics.length_controlled(preferences[known], *words),
        "companions": {side: companions.summary(parts(items, f"answer_{side}"), **settings) for side in ("a", "b")},
    }


def describe(summary: dict[str, Any]) -> str:
    """What `summarise` gave, as tables of text."""
    parts = _pairwise_tables(summary) if summary["kind"] == "pairwise" else _absolute_tables(summary)
    return "\n\n".join([*parts, "\n".join([*_notes(summary), how(summary)])])


def _absolute_tables(summary: dict[str, Any]) -> list[str]:
    low, high = summary["scale"]
    places = score_decimals(summary["scale"])
    rows = [
        [judged_by(f"{summary['scored']:,} answers", summary["judge"]), "model"],
        [f"score, {low:g} to {high:g}", score(summary["score"], places)],
        ["median score", number(summary["median"], places)],
        ["score and words, Spearman", score(summary["length"], 2)],
    ]
    if summary["companions"] is not None:
        rows += _companions([summary["companions"]])
    bars = summary["distribution"]
    most = max(1, *(bar["answers"] for bar in bars))
    chart = [["score", "answers", ""]]
    for bar in bars:
        label = f"{bar['low']:g}" if bar["low"] == bar["high"] else f"{bar['low']:g} to {bar['high']:g}"
        chart.append([label, f"{bar['answers']:,}", ("#" * -(-bar["answers"] * _BAR // most)).ljust(_BAR)])
    return [table(rows), table(chart)]


def _pairwise_tables(summary: dict[str, Any]) -> list[str]:
    rows = [
        [judged_by(f"{summary['scored']:,} pairs", summary["judge"]), "a against b"],
        ["win / tie / loss", "{wins} / {ties} / {losses}".format(**summary)],
        ["win rate", score(summary["win_rate"], 3)],
        ["win rate at equal length", score(summary["length_controlled"], 3)],
        ["both orders agree", score(summary["consistency"], 3)],
        ["decided for the first answer", score(summary["first"], 3)],
    ]
    return [table(rows), table([["", "a", "b"], *_companions([summary["companions"][side] for side in ("a", "b")])])]


def _companions(columns: list[dict[str, Any]]) -> list[list[str]]:
    """A row a companion, but for those of which nothing is known."""
    known = [name for name in companions.MEASURES if any(column[name]["value"] is not None for column in columns)]
    return [[companions.MEASURES[name], *(score(column[name], decimals(name)) for column in columns)] for name in known]


def _notes(summary: dict[str, Any]) -> list[str]:
    """What is to be said beside the tables: what went wrong, and what the numbers mean."""
    lines = []
    if summary["failed"]:
        treated = "counted as the worst" if summary["on_failure"] == "lowest" else "left out"
        lines.append(f"Not judged, {treated}: {summary['failed']:,} of {summary['items']:,}")
        lines += [f"  {row['id']}: {cut(row['error'], 100)}" for row in summary["failures"][:_TOLD]]
        if (more := summary["failed"] - _TOLD) > 0:
            lines.append(f"  and {more:,} more")
    if summary["retried"] or summary["cached"]:
        lines.append(f"Asked for more than once: {summary['retried']:,}. From the cache: {summary['cached']:,}.")
    if summary["kind"] == "pairwise":
        return [*lines, *_pairwise_notes(summary)]
    if summary["bounds"] is not None:
        ends = (number(summary["bounds"][end], score_decimals(summary["scale"])) for end in ("low", "high"))
        lines.append("The mean of all lies between {} and {}, whatever those would have scored.".format(*ends))
    if summary["given"] is not None:
        lines.append(f"With the {summary['given']['answers']:,} given scores: {agreed(summary['given'], summary['scale'])}.")
    return lines


def _pairwise_notes(summary: dict[str, Any]) -> list[str]:
    rate, controlled, lines = summary["win_rate"], summary["length_controlled"], []
    if rate["value"] is not None:
        better = ("a" if rate["value"] > 0.5 else "b") if summary["sign_test"] < 0.05 else None
        what = f"{better} is better" if better else "No difference is shown between a and b"
        lines.append(f"{what} (sign test of wins and losses, {p_value(summary['sign_test'])}).")
    if controlled["error"] is not None:
        low, high = (controlled["length"][end] for end in ("low", "high"))
        leaning = (
            "longer answers win more" if low > 0 else "shorter answers win more" if high < 0 else "no effect of it is shown"
        )
        lines.append(f"Length: {leaning}. The win rate at equal length has a standard error of {controlled['error']:.3f}.")
    twice = summary["first_twice"], summary["second_twice"]
    if any(twice):
        place = "first" if twice[0] > twice[1] else "second"
        biased = f"the judge prefers what stands {place}" if summary["position_test"] < 0.05 else "no preference is shown"
        lines.append(
            f"The order alone decided {sum(twice)} pairs, {twice[0]} for the first answer and {twice[1]} for the second, "
            f"and they count as ties: {biased} ({p_value(summary['position_test'])})."
        )
    return lines


def decimals(name: str) -> int:
    """How many decimals of a companion are worth telling."""
    return {"words": 1, "length_ratio": 2, "reference_perplexity": 2}.get(name, 3)


def score_decimals(scale: Sequence[float]) -> int:
    """The same of a score."""
    return 1 if scale[1] - scale[0] >= 20 else 2


def judged_by(what: str, judge: str | None) -> str:
    return f"{what} judged by {judge}" if judge else what


def p_value(p: float) -> str:
    """A test's p with two digits: "p=0.0013", "p<0.0001"."""
    return "p<0.0001" if p < 1e-4 else f"p={p:.2g}"


def agreed(found: dict[str, Any], scale: Sequence[float]) -> str:
    """What statistics.agreement gave, in words."""
    places, off = score_decimals(scale), found["difference"]["value"]
    mild = f"{abs(off):.{places}f} {'higher' if off >= 0 else 'lower'} on average"
    return (
        f"Spearman {score(found['spearman'], 2)}, {number(found['distance']['value'], places)} points apart, {mild}, "
        f"equal in {found['exact']['value']:.0%}, within {found['within']['points']:g} points in {found['within']['value']:.0%}"
    )


def how(told: dict[str, Any]) -> str:
    """Where the intervals come from."""
    if not told["bootstrap"]:
        return "In brackets: 95 % intervals, Wilson's of shares; the others are left out: no resamples."
    return f"In brackets: 95 % intervals of {told['bootstrap']:,} resamples of the answers, Wilson's of shares."


def plot(items: Sequence[Item], path: str | Path, *, title: str | None = None) -> Path:
    """Draw the items as one PNG: the distribution of scores, and score over words of the answer; of pairs wins, ties and
    losses, and how much longer the answer of a is in each. Returns `path`."""
    from matplotlib.figure import Figure  # without pyplot there is no window system to look for

    items = ordered(items)
    figure = Figure(figsize=(11, 4), layout="constrained")
    figure.suptitle(title, parse_math=False)
    left, right = figure.subplots(1, 2)
    if "orders" in items[0]:
        _draw_verdicts(left, right, items)
    else:
        _draw_scores(left, right, items)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return Path(path)


def _draw_scores(left: Any, right: Any, items: list[Item]) -> None:
    scale, found, words = scale_of(items), scores(items), lengths(items)
    good = ~np.isnan(found)
    bars = statistics.distribution(found[good], scale)
    width = bars[0]["high"] - bars[0]["low"]
    left.bar(
        [bar["low"] for bar in bars],
        [bar["answers"] for bar in bars],
        width or 0.8,
        align="edge" if width else "center",
        color="tab:blue",
        edgecolor="white",
    )
    if good.any():
        mean = found[good].mean()
        left.axvline(mean, color="black", linestyle="--", linewidth=1, label=f"mean {mean:.{score_decimals(scale)}f}")
        left.legend()
    left.set(title=f"{good.sum():,} scored, {(~good).sum():,} failed", xlabel="score", ylabel="answers")
    right.plot(words[good], found[good], "o", color="tab:blue", alpha=0.5, markersize=4)
    correlation = number(statistics.spearman(found[good], words[good], bootstrap=0)["value"], 2)
    right.set(title=f"score and length: Spearman {correlation}", xlabel="words of the answer", ylabel="score")


def _draw_verdicts(left: Any, right: Any, items: list[Item]) -> None:
    names, colors = ("a", "tie", "b"), ("tab:blue", "tab:gray", "tab:orange")
    labels = ["a wins", "tie", "b wins"]
    verdicts = np.array([statistics.verdict(item["orders"]) or "failed" for item in items])
    left.bar_label(left.bar(labels, [int((verdicts == name).sum()) for name in names], color=colors))
    n_failed = int((verdicts == "failed").sum())
    left.set(title=f"{len(items) - n_failed:,} judged, {n_failed:,} failed", ylabel="pairs")
    longer = lengths(items, "answer_a") - lengths(items, "answer_b")
    for place, (name, color) in enumerate(zip(names, colors)):
        those = np.sort(longer[verdicts == name])
        apart = place + np.linspace(-0.25, 0.25, len(those))  # so that equal ones can be told from one
        right.plot(apart, those, "o", color=color, alpha=0.5, markersize=4)
    right.set_xticks(range(len(names)), labels)
    right.axhline(0, color="black", linewidth=0.8)
    right.set(title="length by verdict", ylabel="words of a less words of b")
