"""Two files of judged answers (items.py) side by side: two models before one judge, or two judges of the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt2x.errors import UserError
from gpt2x.evaluation.judge import companions, report, statistics
from gpt2x.evaluation.judge.items import Item, have_answers, judge, listed, ordered, parts, read_items, scale_of, scores
from gpt2x.evaluation.judge.report import agreed, decimals, how, judged_by, p_value, score_decimals, tolerance
from gpt2x.evaluation.output import cut, number, score, table, writing

_PER_ANSWER = ("exact_match", "rouge_l", "words", "empty", "end_of_text")  # companions that each answer has by itself


class Judged:
    """What the judged answers at `path` show, a file or the folder of a run, beside those `against` it; see JudgedConfig."""

    def __init__(self, path: str, against: str | None = None, *, on_failure: str, bootstrap: int, plot: str | None):
        self.paths = [path, *([] if against is None else [against])]
        self.settings, self.plot = {"on_failure": on_failure, "bootstrap": bootstrap}, plot

    def evaluate(self) -> dict[str, Any]:
        """The report, and the picture of the first where it is wanted. Raises UserError for what cannot be read or compared."""
        items, *others = map(read_items, self.paths)
        numbers = {"evaluation": "judged"} | summarise_both(items, *others, **self.settings)
        if self.plot is not None:
            with writing("evaluation.plot", self.plot):
                report.plot(items, self.plot, title=numbers["judge"])
        return numbers

    def describe(self, numbers: dict[str, Any]) -> str:
        """What `evaluate` gave, as text to print."""
        return describe_both(numbers)


def compare(
    items: Sequence[Item],
    baseline: Sequence[Item],
    *,
    on_failure: str = "exclude",
    within: float | None = None,
    bootstrap: int = 1000,
    seed: int = 1,
) -> dict[str, Any]:
    """What the scores of `items` and of `baseline` show, answer by answer; the settings are those of report.summarise.

    kind                "answers" of two models to the same questions, or "judges" of the same answers
    judge, baseline_judge, scale, on_failure, bootstrap
    pairs               with both scores, or counted by on_failure=lowest
    failed              ids (places, where there are none) of pairs that lack a score
    unpaired            {"items", "baseline"}: ids that only one has
    measures            of answers: "score" and the companions of which each answer has a number of its own; of each the
                        means, "model" and "baseline", and statistics.difference
    agreement           of judges: "model" and "baseline", the mean scores, and statistics.agreement

    Raises UserError where the two cannot be paired, are of other questions, or of both another judge and other answers;
    and with on_failure=raise where a score is missing.
    """
    if any("orders" in item for item in (*items, *baseline)):
        raise UserError("verdicts on pairs are a comparison already; two files of scores can be compared")
    pairs, unpaired = pair(items, baseline)
    kind = _kind(pairs)
    ours, theirs = map(list, zip(*pairs))
    scale, a, b = scale_of(ours, theirs), scores(ours), scores(theirs)
    missing = np.isnan(a) | np.isnan(b)
    failed = [ours[place].get("id", int(place) + 1) for place in np.flatnonzero(missing)]
    if failed and on_failure == "raise":
        raise UserError(f"{len(failed):,} of {len(pairs):,} pairs lack a score: {listed(failed)}\n  Use on_failure=exclude.")
    if on_failure == "lowest":
        a, b, missing = np.nan_to_num(a, nan=scale[0]), np.nan_to_num(b, nan=scale[0]), np.zeros_like(missing)
    settings = {"bootstrap": bootstrap, "seed": seed}
    result = {
        "kind": kind,
        "judge": judge(items),
        "baseline_judge": judge(baseline),
        "scale": list(scale),
        "pairs": int((~missing).sum()),
        "failed": failed,
        "unpaired": unpaired,
        "on_failure": on_failure,
        "bootstrap": bootstrap,
    }
    if result["pairs"] == 0:
        raise UserError(f"none of the {len(pairs):,} pairs has both scores, so that there is nothing to compare")
    if kind == "judges":
        span, points = scale[1] - scale[0], tolerance(scale, within)
        found = statistics.agreement(a[~missing], b[~missing], within=points, span=span, **settings)
        return result | {"agreement": _means(a[~missing], b[~missing], scale, settings) | found}
    columns = {"score": (a, b, scale)}
    if have_answers(ours) and have_answers(theirs):
        columns |= _per_answer(parts(ours), parts(theirs))
    measures = {
        name: _means(x[~missing], y[~missing], ends, settings)
        | statistics.difference(x[~missing], y[~missing], span=ends[1] - ends[0], **settings)
        for name, (x, y, ends) in columns.items()
    }
    return result | {"measures": measures}


def summarise_both(items: Sequence[Item], others: Sequence[Item] | None = None, **settings: Any) -> dict[str, Any]:
    """What report.summarise tells of `items`; with `others`, what it tells of these as "baseline", and the "comparison"."""
    numbers = report.summarise(items, **settings)
    if others is not None:
        numbers |= {"baseline": report.summarise(others, **settings), "comparison": compare(items, others, **settings)}
    return numbers


def describe_both(numbers: dict[str, Any]) -> str:
    """What `summarise_both` gave, as tables of text."""
    text = report.describe(numbers)
    return f"{text}\n\n{describe(numbers['comparison'])}" if "comparison" in numbers else text


def pair(items: Sequence[Item], baseline: Sequence[Item]) -> tuple[list[tuple[Item, Item]], dict[str, list[Any]]]:
    """The items of two files that are of the same question, in the order of their ids; and {"items", "baseline"}, the ids
    that only one of the two has.

    Items without ids, as those of a list of scores, are paired by their places, if there are equally many.
    Raises UserError where it cannot be known what belongs together, nothing does, or the questions are not the same.
    """
    items, baseline = ordered(items), ordered(baseline)
    if not all("id" in item for item in (*items, *baseline)):
        if len(items) != len(baseline):
            raise UserError(
                f"{len(items):,} and {len(baseline):,} scores cannot be paired: without ids nobody knows which one is missing\n"
                "  Judge the answers again, which leaves a line of each, or look at the two means alone."
            )
        return list(zip(items, baseline)), {"items": [], "baseline": []}
    others = {item["id"]: item for item in baseline}
    found = [(item, others[item["id"]]) for item in items if item["id"] in others]
    if not found:
        raise UserError("the two files have no id in common, so that no answers can be compared")
    for item, other in found:
        for name in ("instruction", "input"):
            if name in item and name in other and item[name] != other[name]:
                told = f"{cut(item[name], 60)!r} in one file, {cut(other[name], 60)!r} in the other"
                raise UserError(f"item {item['id']}: the {name} is {told}: these are answers to other questions")
    shared = {item["id"] for item, _ in found}
    only = ([item["id"] for item in side if item["id"] not in shared] for side in (items, baseline))
    return found, dict(zip(("items", "baseline"), only))


def describe(comparison: dict[str, Any]) -> str:
    """What `compare` gave, as a table of text, and who is ahead."""
    scale = comparison["scale"]
    places = score_decimals(scale)
    if comparison["kind"] == "judges":
        found = comparison["agreement"]
        rows = [[f"{comparison['pairs']:,} answers judged by", "mean score"]]
        rows += [[comparison[name], score(found[side], places)] for name, side in _JUDGES.items()]
        verdict = f"The first against the second: {agreed(found, scale)}."
    else:
        what = judged_by(f"{comparison['pairs']:,} answers of each", comparison["judge"])
        rows = [[what, "model", "baseline", "difference", "win / tie / loss", "sign test"]]
        for name, row in comparison["measures"].items():
            n = places if name == "score" else decimals(name)
            means = (number(row[side]["value"], n) for side in ("model", "baseline"))
            counts = "{wins} / {ties} / {losses}".format(**row)
            title = companions.MEASURES.get(name, name)
            rows.append([title, *means, score(row["difference"], n), counts, p_value(row["sign_test"])])
        verdict = _verdict(comparison["measures"]["score"]["difference"], places)
    lines = [verdict]
    for side, other in (("items", "the baseline"), ("baseline", "the model")):
        if ids := comparison["unpaired"][side]:
            lines.append(f"Left out, as {other} has none: {len(ids):,} ({listed(ids)}).")
    if comparison["failed"]:
        treated = "count as the lowest" if comparison["on_failure"] == "lowest" else "left out"
        lines.append(f"Without both scores, {treated}: {len(comparison['failed']):,} ({listed(comparison['failed'])}).")
    return "\n\n".join([table(rows), "\n".join([*lines, how(comparison)])])


_JUDGES = {"judge": "model", "baseline_judge": "baseline"}


def _kind(pairs: list[tuple[Item, Item]]) -> str:
    judges = [judge(side) for side in zip(*pairs)]
    if None in judges or judges[0] == judges[1]:
        return "answers"
    if all(item.get("answer") is not None and item["answer"] == other.get("answer") for item, other in pairs):
        return "judges"
    raise UserError(
        f"other answers, judged by another judge ({judges[0]} and {judges[1]}): a difference could be of either\n"
        "  Have both judged by the same one."
    )


def _means(a: np.ndarray, b: np.ndarray, ends: Sequence[float], settings: dict[str, int]) -> dict[str, Any]:
    sides = {"model": a, "baseline": b}
    return {name: statistics.mean(side, lower=ends[0], upper=ends[1], **settings) for name, side in sides.items()}


def _per_answer(ours: dict, theirs: dict) -> dict[str, tuple[np.ndarray, np.ndarray, tuple[float, float]]]:
    """The companions that each answer of both has by itself, and their ends."""
    known = [name for name in _PER_ANSWER if (ours[name][1] == 1).all() and (theirs[name][1] == 1).all()]
    return {name: (ours[name][0], theirs[name][0], (0.0, np.inf if name == "words" else 1.0)) for name in known}


def _verdict(difference: dict[str, float | None], places: int) -> str:
    """Who is ahead, said outright."""
    value, low, high = difference.values()
    if value == 0:
        return "The model and the baseline have the same mean score."
    ahead, behind = ("model", "baseline") if value > 0 else ("baseline", "model")
    text = f"The {ahead} is ahead of the {behind} by {abs(value):.{places}f} points"
    if low is None:
        return f"{text}."
    return f"{text}, which may be chance: the interval holds 0." if low <= 0 <= high else f"{text}: the interval leaves out 0."
