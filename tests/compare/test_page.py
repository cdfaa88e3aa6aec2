"""The comparison page: its text, read without a browser, and what a real one makes of it."""

from __future__ import annotations

import base64
import html.parser
import json
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from compare import synthetic

from gpt2x.compare import page
from gpt2x.compare.importance import Importance, importance
from gpt2x.compare.page import write_page
from gpt2x.errors import UserError

NASTY = "</script><img src=x onerror=\"document.title='owned'\"><!--<script>{{ 7*7 }} ${alert(1)} %{x} <b>&amp;</b>"
VOID = {"meta", "input", "img", "br", "hr", "link"}


class Parsed(html.parser.HTMLParser):
    """The page's elements, and that each is closed where it should be."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.texts: dict[str, str] = {}
        self.cells: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data
        if self.open[-1:] == ["script"]:
            self.texts[self.elements[-1][1].get("type", "classic")] = data


def parsed(path: Path) -> Parsed:
    return Parsed(path.read_text(encoding="utf-8"))


def data_of(path: Path) -> dict:
    return json.loads(parsed(path).texts["application/json"])


def curve(data: dict, number: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(data["arrays"][number]), dtype="<f4")


@pytest.fixture(scope="module")
def runs():
    return synthetic.runs()


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(runs, path, title="Twelve runs")
    return path


def nasty_runs():
    """Two of four runs have hostile texts everywhere, one of them without a result, and nothing is quite complete."""
    made = synthetic.runs(settings=4, seeds=1)
    table, metrics, samples = made.table.copy(), made.metrics.copy(), made.samples.copy()
    long = "very-long-name-" * 20
    names = [NASTY, f"b/{long}", "c", "d"]
    table.index = pd.Index(names, name="run", dtype=object)
    metrics["run"] = metrics["run"].cat.rename_categories(dict(zip("0123", names)))
    samples["run"] = samples["run"].map(dict(zip("0123", names)))
    for column, value in {
        "status": "failed",
        "error": NASTY,
        "overrides": NASTY,
        "metric": np.nan,
        "last.val/loss": np.nan,
    }.items():
        table.loc[NASTY, column] = value
    table["config.data.path"] = [NASTY, long, None, "x"]
    table["config.only.some"] = [np.nan, True, False, np.nan]
    metrics.loc[metrics["run"] == NASTY, "val/loss"] = np.nan
    metrics.loc[metrics["run"] == "c", "train/loss"] = np.inf
    samples[["prompt", "text", "reference"]] = samples[["prompt", "text", "reference"]].astype(object)
    samples.loc[samples["run"] == NASTY, ["prompt", "text", "reference"]] = NASTY
    samples.loc[samples["run"] == "c", "text"] = "x" * 10_000
    return replace(made, table=table, metrics=metrics, samples=samples, problems=[f"metrics.jsonl: {NASTY}"])


# ---- without a browser


def test_the_page_is_whole_html_that_loads_nothing(written):
    found = parsed(written)
    tags = [tag for tag, _ in found.elements]
    assert [tags.count(tag) for tag in ("html", "head", "body", "header", "nav", "main", "h1", "footer")] == [1] * 8
    assert {"link", "iframe", "img", "base"}.isdisjoint(tags)
    assert not any("src" in attributes for _, attributes in found.elements)
    assert all(attributes["href"].startswith("#") for _, attributes in found.elements if "href" in attributes)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for _, a in found.elements if "href" in a} <= set(ids)
    style = re.search(r"<style>(.*?)</style>", written.read_text(encoding="utf-8"), re.S)[1]
    assert not re.search(r"@import|url\(\s*['\"]?(?!data:)", style)
    (policy,) = (a["content"] for tag, a in found.elements if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "http" not in policy and "script-src 'unsafe-inline'" not in policy


def test_the_table_has_every_run_best_first_with_its_settings(written, runs):
    head, *rows = parsed(written).cells
    table = [dict(zip(head, row)) for row in rows]
    assert len(table) == len(runs)
    assert [row["run"] for row in table] == list(runs.table["metric"].sort_values().index)
    for row in table:
        of = runs.table.loc[row["run"]]
        assert float(row["val/loss"]) == pytest.approx(of["metric"], rel=1e-4)
        assert float(row["optimizer.lr"]) == of["config.optimizer.lr"]
        assert int(row["model.n_embd"]) == of["config.model.n_embd"]
        assert row["status"] == "finished"
    assert "task.kind" not in head  # it is the same in all


def test_curves_are_the_logged_numbers(written, runs):
    data = data_of(written)
    for i, name in enumerate(data["runs"]):
        for metric in ("train/loss", "val/loss"):
            for axis in ("step", "tokens", "seconds", "flops"):
                expected = runs.curve(name, metric, axis)
                found = data["curves"][metric]["run"][i]
                np.testing.assert_allclose(curve(data, found["x"][axis]), expected[axis], rtol=1e-6)
                np.testing.assert_allclose(curve(data, found["y"]), expected[metric], rtol=1e-6)


def test_group_curves_are_means_with_the_standard_error_over_seeds(written, runs):
    data = data_of(written)
    assert len(data["groups"]) == 4
    for group, found in zip(data["groups"], data["curves"]["val/loss"]["group"]):
        names = [data["runs"][i] for i in group["runs"]]
        pivot = (
            runs.metrics[runs.metrics["run"].isin(names)].dropna().pivot(index="step", columns="run", values="val/loss")[names]
        )
        assert pivot.shape == (6, 3)
        np.testing.assert_allclose(curve(data, found["y"]), pivot.mean(axis=1), rtol=1e-6)
        np.testing.assert_allclose(curve(data, found["error"]), pivot.sem(axis=1), rtol=1e-5)


def test_a_failed_run_does_not_enter_its_groups_mean(runs, tmp_path):
    table = runs.table.copy()
    table.loc["0", "status"] = "failed"
    write_page(replace(runs, table=table), tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    at = next(i for i, group in enumerate(data["groups"]) if 0 in group["runs"])
    expected = sum(runs.curve(name, "val/loss")["val/loss"].to_numpy() for name in "12") / 2
    np.testing.assert_allclose(curve(data, data["curves"]["val/loss"]["group"][at]["y"]), expected, rtol=1e-6)


def test_a_seed_that_ran_twice_counts_once(runs, tmp_path):
    table = runs.table.copy()
    table.loc[["0", "1", "2"], "config.seed"] = [1, 2, 2]
    write_page(replace(runs, table=table), tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    at = next(i for i, group in enumerate(data["groups"]) if 0 in group["runs"])
    one, two, three = (runs.curve(name, "val/loss")["val/loss"].to_numpy() for name in "012")
    found = data["curves"]["val/loss"]["group"][at]
    seeds = np.stack([one, (two + three) / 2])
    np.testing.assert_allclose(curve(data, found["y"]), seeds.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(curve(data, found["error"]), np.abs(seeds[0] - seeds[1]) / 2, rtol=1e-4)
    assert data["groups"][at]["n"] == "n=2"


def test_without_a_known_seed_or_an_end_a_mean_says_so(runs, tmp_path):
    table = runs.table.drop(columns="config.seed")
    table["status"] = "killed"
    write_page(replace(runs, table=table), tmp_path / "page.html")
    counted = {group["n"] for group in data_of(tmp_path / "page.html")["groups"]}
    assert counted == {"n=3, none of which counts for a verdict"}


def test_the_page_says_what_follows_the_table_s_filter(written):
    said = " ".join(written.read_text(encoding="utf-8").split())
    assert "the curves and the settings below show the runs that are left" in said
    assert "A mean over seeds stays that of all its runs while one of them is left" in said
    assert "which settings mattered that of all finished runs" in said


def test_long_curves_are_thinned_to_means(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_POINTS", 20)
    made = synthetic.runs(settings=1, seeds=1, rows=100)
    write_page(made, tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    found = data["curves"]["train/loss"]["run"][0]
    logged = made.curve("0", "train/loss")
    np.testing.assert_allclose(curve(data, found["y"]), logged["train/loss"].to_numpy().reshape(20, 5).mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(curve(data, found["x"]["step"]), logged["step"].to_numpy().reshape(20, 5).mean(axis=1))
    assert "mean of up to 5 logged rows" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(curve(data, data["curves"]["val/loss"]["run"][0]["y"])) == 10  # it was short enough


def test_what_comes_from_runs_is_text_and_never_markup(tmp_path):
    write_page(nasty_runs(), tmp_path / "page.html", title=NASTY)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    found = Parsed(text)
    assert "img" not in [tag for tag, _ in found.elements]
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    data = data_of(tmp_path / "page.html")
    assert data["runs"][0] == NASTY
    assert "<" not in found.texts["application/json"]
    assert all("<" not in label for label in data["labels"])
    assert any(NASTY in row for row in found.cells)  # whole, in a cell
    assert data["samples"]["0"][0]["text"] == NASTY
    assert len(data["samples"]["2"][0]["text"]) < 5_000


def test_every_state_of_runs_makes_a_page(runs, tmp_path):
    nothing = replace(runs, metrics=runs.metrics[:0], samples=runs.samples[:0])
    table = runs.table.copy()
    table[["metric", "best_step", "steps", "tokens", "seconds", "flops", "last.val/loss"]] = np.nan
    table["status"] = "failed"
    table["error"] = "ValueError: no\nTraceback"
    unstarted = replace(nothing, table=table.assign(started=pd.NaT))
    for i, case in enumerate([runs.select(["0"]), runs.select(["0", "1"]), nothing, unstarted, unstarted.select(["3"])]):
        write_page(case, tmp_path / f"{i}.html")
        assert len(parsed(tmp_path / f"{i}.html").cells) == len(case) + 1
    text = (tmp_path / "3.html").read_text(encoding="utf-8")
    assert "12 runs: 12 failed" in text and "None of the runs has a val/loss yet" in text
    assert "None of the runs has logged a metric yet" in text and "None of the runs has generated texts" in text
    assert "ValueError: no" in text


def test_an_unknown_metric_is_refused(runs, tmp_path):
    with pytest.raises(UserError, match="val/los: none of these runs has logged it"):
        write_page(runs, tmp_path / "page.html", metric="val/los")
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_grows_puts_the_largest_first(tmp_path):
    made = synthetic.runs(settings=2, seeds=2, **{"val/accuracy": 0.5})
    write_page(made, tmp_path / "page.html", metric="val/accuracy")
    best = made.metrics.groupby("run", observed=True)["val/accuracy"].max()
    data = data_of(tmp_path / "page.html")
    assert [data["runs"][i] for i in data["order"]] == list(best.sort_values(ascending=False).index)


def test_runs_of_several_tasks_are_warned_of(runs, tmp_path):
    table = runs.table.copy()
    table["config.task._target_"] = ["lm"] * 6 + ["classifier"] * 6
    write_page(replace(runs, table=table), tmp_path / "page.html")
    assert "The runs differ in their task" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_settings_that_change_together_share_an_axis_and_those_of_one_choice_have_none(runs, tmp_path):
    table = runs.table.copy()
    half = [True] * 6 + [False] * 6
    table["config.data._target_"] = ["text" if first else "table" for first in half]
    table["config.data.name"] = ["storybook" if first else "spam" for first in half]
    table["config.data.labels"] = pd.Series([None if first else "[a,b]" for first in half], index=table.index, dtype=object)
    table["config.trainer.patience"] = pd.Series([None, 3] * 6, index=table.index, dtype=object)  # null is a value here
    table["metric"] = 10.0 ** np.linspace(0, 3, 12)
    metrics = runs.metrics.assign(**{"val/loss": np.nan})
    write_page(replace(runs, table=table, metrics=metrics), tmp_path / "page.html")
    axes = {axis["label"]: axis for axis in data_of(tmp_path / "page.html")["parallel"]}
    # the learning rate divides these runs as the data do: the first of them that is not a _target_ stands for all
    assert set(axes) == {"optimizer.lr", "model.n_embd", "trainer.patience", "val/loss"}
    assert axes["trainer.patience"]["ticktext"] == ["3", "null"] and None not in axes["trainer.patience"]["values"]
    assert axes["optimizer.lr"]["ticktext"] == ["0.0001", "0.01"]
    np.testing.assert_allclose(axes["optimizer.lr"]["values"], [-4] * 6 + [-2] * 6)
    np.testing.assert_allclose(axes["val/loss"]["values"], np.linspace(0, 3, 12))
    assert axes["val/loss"]["ticktext"] == ["1", "10", "100"]


# ---- importance


def settings_table(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    table = pd.DataFrame(
        {"lr": 10 ** rng.uniform(-4, -2, n), "kind": rng.choice(["a", "b", "c"], n), "idle": rng.integers(0, 4, n)}
    )
    return table.assign(twin=table["kind"].str.upper(), same=1)


def test_importance_finds_what_a_result_was_made_of():
    table = settings_table(120)
    shift = table["kind"].map({"a": 0.0, "b": 1.5, "c": 0.1})
    found = importance(table, list(table), np.log10(table["lr"]) ** 2 / 4 + shift)
    assert isinstance(found, Importance)
    assert found.settings == ["lr", "kind = twin", "idle"]
    assert found.n == 120 and 0.8 < found.r2 <= 1
    assert abs(found.mean[2]) < 0.05 < found.mean[1] < found.mean[0]


@pytest.mark.parametrize("first, second", [(1.0, 0.0), (1.0, 1.0), (2.0, 1.0)])
def test_importance_is_the_share_of_the_variance(first, second):
    """Of a sum of two independent uniform settings the shares are known (ranks bend them a little)."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.uniform(-1, 1, (600, 2)), columns=["a", "b"])
    found = importance(table, ["a", "b"], first * table["a"] + second * table["b"])
    shares = dict(zip(found.settings, found.mean))
    total = first**2 + second**2
    assert shares["a"] == pytest.approx(first**2 / total, abs=0.12)
    assert shares["b"] == pytest.approx(second**2 / total, abs=0.12)


def test_importance_is_silent_without_evidence():
    table = settings_table()
    rng = np.random.default_rng(2)
    assert "Too few runs" in importance(table[:9], ["lr"], np.arange(9.0))
    many = table[:11].assign(more=np.arange(11) % 5)
    assert "need 12" in importance(many, ["lr", "kind", "idle", "more"], np.arange(11.0))
    assert "cannot predict" in importance(table, ["idle", "kind"], rng.normal(size=60))
    assert "No setting differs" in importance(table, ["same"], np.arange(60.0))
    assert "same result" in importance(table, ["lr"], np.ones(60))
    values = np.where(np.arange(60) < 55, np.nan, 1.0)
    assert "Too few runs" in importance(table, ["lr"], values)


# ---- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a window, which notes what it asks the network for."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no Chromium with its chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
    for flag in [*flags.split(), "disable-sync", "disable-dev-shm-usage", "window-size=1280,900"]:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    started.set_script_timeout(60)
    yield started
    started.quit()


class Tab:
    """A page in the browser."""

    def __init__(self, browser, path: Path):
        self.browser = browser
        browser.get_log("browser"), browser.get_log("performance")
        browser.get(path.as_uri())
        self.until("return document.documentElement.dataset.drawn")

    def __call__(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def until(self, script: str, *arguments):
        for _ in range(1200):
            if value := self(script, *arguments):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}")

    def choose(self, id: str, value) -> None:
        """As a hand would, by the control's events."""
        self(
            "const [id, value] = arguments, control = document.getElementById(id);"
            "if (control.type === 'checkbox') control.checked = value; else control.value = value;"
            "control.dispatchEvent(new Event('change', { bubbles: true }))",
            id,
            value,
        )

    def plotted(self, id: str = "left-plot", of: str = "y") -> list[list[float]]:
        return self(
            "const [id, of] = arguments; return document.getElementById(id).data.filter((t) => t.showlegend !== false)"
            ".map((t) => Array.from(t[of]))",
            id,
            of,
        )

    def column(self, number: int = 1) -> list[str]:
        return self(
            "return [...document.querySelectorAll('#table tbody tr')].map((row) => row.cells[arguments[0] - 1]?.textContent)",
            number,
        )

    def see(self, id: str) -> None:
        self("document.getElementById(arguments[0]).scrollIntoView()", id)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        messages = (json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance"))
        ours = (m["params"] for m in messages if m["method"] == "Network.requestWillBeSent")
        sent = (m["request"]["url"] for m in ours if m["documentURL"].startswith("file:"))  # not those of its first, empty tab
        return [url for url in sent if not url.startswith(("file:", "data:", "blob:"))]


@pytest.fixture
def tab(browser, written):
    opened = Tab(browser, written)
    yield opened
    assert opened.errors() == []
    assert opened.requests() == []


def test_it_opens_from_a_file_and_draws(tab):
    assert tab("return document.title") == "Twelve runs"
    assert len(tab.plotted("left-plot")) == 4 and len(tab.plotted("right-plot")) == 4  # groups over seeds
    assert tab.until("return document.querySelectorAll('#left-plot .legend .traces').length") == 4
    tab.see("settings")
    tab.until("return document.querySelector('#settings-plot .parcoords')")
    assert tab("return document.getElementById('settings-plot').data[0].dimensions.length") == 3
    tab.see("importance")
    assert "n = 12" in tab("return document.querySelector('#importance .note').textContent")


def test_the_table_sorts(tab, runs):
    by_loss = list(runs.table["metric"].sort_values().index)
    assert tab.column() == by_loss
    tab(
        "document.querySelectorAll('.dt-scroll-head th')[4].click()"
    )  # seconds: all have as many steps and tokens, which are hidden
    by_time = list(runs.table["seconds"].sort_values().index)
    assert tab.until("const rows = [...document.querySelectorAll('#table tbody th')].map((c) => c.textContent);"
                     "return rows[0] === arguments[0] && rows", by_time[0]) == by_time  # fmt: skip


def test_groups_are_named_by_what_differs_in_them(browser, runs, tmp_path):
    table = runs.table.copy()
    table["config.data.path"] = pd.Series([None] * 6 + ["a"] * 3 + ["b"] * 3, index=table.index, dtype=object)
    table["config.model.n_layer"] = [1 + i // 3 for i in range(12)]
    write_page(replace(runs, table=table), tmp_path / "page.html")
    opened = Tab(browser, tmp_path / "page.html")
    names = "return document.getElementById('left-plot').data.filter((t) => t.showlegend !== false).map((t) => t.name)"
    found = opened(names)
    assert all(name.startswith("n_layer=") and name.endswith("(n=3)") for name in found)
    assert sorted("path=" in name for name in found) == [False, False, True, True]
    opened("const field = document.querySelector('.dt-search input'); field.value = '0.0001';"
           "field.dispatchEvent(new Event('input', { bubbles: true }))")  # fmt: skip
    opened.until("return document.getElementById('left-plot').data.filter((t) => t.showlegend !== false).length === 2")
    assert set(opened(names)) == {"n_embd=64, n_layer=1 (n=3)", "n_embd=128, n_layer=2 (n=3)"}  # the rate is the same now


def test_columns_that_tell_nothing_are_hidden_at_first(runs, tmp_path):
    table = runs.table.assign(error=["it diverged", *[None] * 11])
    write_page(replace(runs, table=table), tmp_path / "page.html")
    headings = [attributes for tag, attributes in parsed(tmp_path / "page.html").elements if "data-hidden" in attributes]
    head, *rows = parsed(tmp_path / "page.html").cells
    hidden = {title for title, attributes in zip(head, headings, strict=True) if attributes["data-hidden"] == "1"}
    assert {"error", "steps", "tokens", "parameters"} <= hidden
    assert {"run", "status", "val/loss", "seconds", "optimizer.lr", "model.n_embd"}.isdisjoint(hidden)
    assert all(re.fullmatch(r"\d+\.\d", row[head.index("seconds")]) for row in rows)


def test_ticks_that_would_lie_on_each_other_are_left_out():
    axis = page._axis("lr", pd.Series([1.0, 1.01, 1.02, 5.0, 9.98, 10.0]))
    assert axis["ticktext"] == ["1", "5", "10"]
    assert page._axis("lr", pd.Series([1e-4, 1.01e-4, 1e-2]))["ticktext"] == ["0.0001", "0.01"]
    names = page._axis("name", pd.Series([f"{i:03}" for i in range(100)]))["ticktext"]
    assert (len(names) <= 21, names[0], names[-1]) == (True, "000", "099")


def test_filtering_the_table_filters_the_plots(tab, runs):
    tab.choose("color", "run")
    assert len(tab.plotted()) == 12
    tab("const field = document.querySelector('.dt-search input'); field.value = '0.0001';"
        "field.dispatchEvent(new Event('input', { bubbles: true }))")  # fmt: skip
    tab.until("return document.querySelectorAll('#table tbody tr').length === 6")
    slow = {name for name, lr in runs.table["config.optimizer.lr"].items() if lr == 1e-4}
    assert set(tab.column()) == slow
    tab.until("return document.getElementById('left-plot').data.length === 6")
    assert set(tab("return document.getElementById('left-plot').data.map((t) => t.name)")) == slow
    tab.see("settings")
    tab.until("return document.getElementById('settings-plot').data?.[0].dimensions[0].values.length === 6")


def test_the_axis_the_smoothing_and_the_metric_change_what_is_drawn(tab, runs):
    tab.choose("color", "run")
    steps = tab.plotted(of="x")
    tab.choose("axis", "seconds")
    np.testing.assert_allclose(tab.plotted(of="x")[3], runs.curve("3", "val/loss", "seconds")["seconds"], rtol=1e-6)
    tab.choose("axis", "step")
    assert tab.plotted(of="x") == steps
    tab.choose("left", "train/loss")
    raw = tab.plotted()
    np.testing.assert_allclose(raw[3], runs.curve("3", "train/loss")["train/loss"], rtol=1e-6)
    tab.choose("smoothing", "0.08")
    half_life = 0.08 * len(raw[3])
    expected = pd.Series(raw[3]).ewm(halflife=half_life, adjust=True).mean()  # pandas' own
    np.testing.assert_allclose(tab.plotted()[3], expected, rtol=1e-5)
    assert tab("return document.getElementById('left-plot').data.length") == 24  # the raw ones under them
    tab.choose("log-x", True)
    tab.choose("log-y", True)
    assert tab("const l = document.getElementById('left-plot').layout; return [l.xaxis.type, l.yaxis.type]") == ["log", "log"]


def test_chosen_runs_stand_side_by_side(tab, runs):
    tab.choose("chosen-0", "0")
    tab.choose("chosen-1", "3")
    tab.choose("chosen-2", "")
    rows = dict(
        tab("return [...document.querySelectorAll('#side-table tr')].map((row) => [row.cells[0].textContent,"
            "[...row.cells].slice(1).map((cell) => cell.textContent)])")
    )  # fmt: skip
    assert rows["model.n_embd"] == ["64", "128"]
    assert "optimizer.lr" not in rows and "seed" not in rows  # they are the same
    assert all(f"there was run {name} at 600" in text for name, text in zip("03", rows['prompt: "Once"']))


def test_dark_and_phone(tab):
    tab.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    try:
        paper = tab("return getComputedStyle(document.body).backgroundColor")
        tab.until("return document.getElementById('left-plot').layout.paper_bgcolor === '#14181d'")
        assert paper == "rgb(20, 24, 29)"
        size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        tab.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert tab.until("return innerWidth === 390 && document.documentElement.scrollWidth") <= 390  # it scrolls one way alone
    finally:
        tab.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        tab.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_controls_have_names_and_plots_say_what_they_are(tab):
    unnamed = tab(
        "const named = (c) => c.labels?.length || c.ariaLabel || c.textContent.trim() || c.title;"
        "return [...document.querySelectorAll('main :is(select, input, button)')]"
        ".filter((c) => !named(c)).map((c) => c.outerHTML)"
    )
    assert unnamed == []
    assert tab("return document.getElementById('left-plot').ariaLabel").startswith("val/loss of 4 curves by step")


def test_hostile_texts_do_nothing(browser, tmp_path):
    write_page(nasty_runs(), tmp_path / "page.html")
    opened = Tab(browser, tmp_path / "page.html")
    for id in ("settings", "importance", "side"):
        opened.see(id)
    opened.until("return document.querySelector('#settings-plot .parcoords')")
    opened.choose("chosen-0", "0")
    assert opened("return document.title") == "Comparing runs"
    assert opened("return document.querySelectorAll('main img').length") == 0
    assert opened("return document.getElementById('side-table').textContent.includes(arguments[0])", NASTY)
    assert opened.errors() == [] and opened.requests() == []


def test_single_runs_and_unfinished_ones_open_without_an_error(browser, runs, tmp_path):
    nothing = replace(runs, metrics=runs.metrics[:0], samples=runs.samples[:0])
    for i, case in enumerate([runs.select(["0"]), nothing]):
        write_page(case, tmp_path / f"{i}.html")
        opened = Tab(browser, tmp_path / f"{i}.html")
        assert opened("return document.querySelectorAll('#table tbody tr').length") == len(case)
        assert opened.errors() == []


def test_five_hundred_runs_of_two_thousand_rows(browser, tmp_path):
    made = synthetic.runs(settings=100, seeds=5, rows=2000, every=50, grad_norm=1.0, tokens_per_s=1e4, memory_mb=500.0)
    write_page(made, tmp_path / "page.html")
    assert os.path.getsize(tmp_path / "page.html") < 15e6
    opened = Tab(browser, tmp_path / "page.html")
    assert len(opened.plotted()) == 100
    opened.choose("color", "run")
    assert len(opened.plotted()) == 500
    assert "of 500 runs" in opened("return document.querySelector('.dt-info').textContent")
    assert opened.errors() == []
