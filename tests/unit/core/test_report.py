"""The report: true sentences, whole pages for every kind of run, nothing fetched, nothing injected, all readable."""

import base64
import io
import re
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from core.evaluation import report_words as words
from core.evaluation.charts import MOST_POINTS, Line, _ticks, heat_map, line_chart
from core.evaluation.metrics import paired_interval, per_class
from core.evaluation.report import MOST_FILES, ReportData, ReportSound, StageTime, render_report

HOSTILE = "\"><script src=//evil.example/x.js></script><img src=x onerror=alert(1)>'&.jpg"
VOID = {"meta", "img", "source", "br", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Reads a page and refuses a tag that is closed in the wrong place."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert not self.open
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.words.append(data.strip())

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def png(width=60):
    out = io.BytesIO()
    Image.new("RGB", (width, 20)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def card(**changes):
    return {
        "counts": {"train": 70, "val": 10, "test": 20},
        "labelled": {"train": 70, "val": 10, "test": 20},
        "classes": {"cat": {"train": 35, "val": 5, "test": 10}, "dog": {"train": 35, "val": 5, "test": 10}},
        "statistics": {"mean": [0.5], "std": [0.25]},
        "duplicates": {"count": 0, "files": []},
        "bytes": 2**20,
        "source_bytes": 2**21,
        "unreadable": [],
    } | changes


def efficiency(ours, theirs, baseline):
    mean, low, high = paired_interval([a - b for a, b in zip(ours, theirs, strict=True)])
    return {
        "labels_per_class": [5],
        "seeds": list(range(len(ours))),
        "pretrained": [ours],
        "random": [theirs],
        "baseline": {"name": "PCA + logistic regression", "values": [[baseline] * len(ours)]},
        "paired": [{"labels": 5, "mean": mean, "low": low, "high": high}],
    }


def results(classes=("cat", "dog"), confusion=((9, 1), (3, 7)), **changes):
    return {
        "classes": list(classes),
        "test": {"top1": 0.8},
        "intervals": {"top1": [0.6, 0.95]},
        "confusion": [list(row) for row in confusion],
        "per_class": per_class(np.array(confusion), classes),
        "probes": {"knn": {"pretrained": 0.7, "random": 0.4}},
    } | changes


def data(**changes):
    values = {
        "recipe": "pets",
        "modality": "photographs",
        "recipe_values": {"task": {"kind": "single_label"}, "pretrain": {"norm_pix": "patch"}},
        "cards": [("Data", card())],
        "curves": {"pretrain/loss": [(1, 1.0), (2, 0.5)], "pretrain/val_loss": [(1, 1.1), (2, 0.6)]},
        "picture": png(),
        "results": results(),
        "times": [StageTime("prepare", 5.0), StageTime("pretrain", 95.0)],
        "environment": {"torch": "2.11.0", "seed": "0"},
    }
    return ReportData(**values | changes)


GOOD = efficiency([0.86, 0.87, 0.85], [0.80, 0.80, 0.80], 0.7)
RUNS = {
    "everything": data(results=results(label_efficiency=GOOD)),
    "pretraining alone": data(
        results=None, encoder_metrics={"pretrain/loss": 0.4}, cards=[("Data", card(classes={}))], picture=None
    ),
    "several labels": data(
        results={
            "classes": ["cat", "dog"],
            "test": {"map": 0.61, "classes_scored": 2.0},
            "intervals": {},
            "probes": {"knn": {"pretrained": 0.55, "random": 0.25}},
        },
        recipe_values={"task": {"kind": "multi_label"}},
    ),
    "numbers": data(
        results={
            "classes": [],
            "test": {"r2": 0.91, "mae": 0.2},
            "intervals": {},
            "probes": {"linear": {"pretrained": 0.5, "random": -0.2}},
        },
        recipe_values={"task": {"kind": "regression"}},
        cards=[("Data", card(classes={}))],
    ),
    "nothing but a name": ReportData("r", "m", {}, []),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_run_has_a_well_formed_page_that_fetches_nothing(name):
    text = render_report(RUNS[name])
    page = Page(text)
    assert not page.all("script")
    assert not page.all("link")
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert not re.search(r"(?:https?:)?//|@import|url\(", text.replace(png(), ""))
    assert any("default-src 'none'" in meta.get("content", "") for meta in page.all("meta"))
    assert not re.search(r"\b(?:nan|inf|None)\b", page.text)


@pytest.mark.parametrize("name", RUNS)
def test_a_screen_reader_is_told_what_pictures_and_columns_are(name):
    page = Page(render_report(RUNS[name]))
    assert all(image.get("alt") for image in page.all("img"))
    assert all(drawing.get("aria-label") for drawing in page.all("svg"))
    assert all(head.get("scope") in ("row", "col") for head in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"


def test_few_groups_are_told():
    assert "from 3 groups, drawn whole" in Page(render_report(data(results=results(groups=3)))).text
    assert "so few tell little" in Page(render_report(data(results=results(groups=3)))).text
    assert "so few" not in Page(render_report(data(results=results(groups=400)))).text
    assert "drawn whole" not in Page(render_report(data(results=results(groups=0)))).text


def test_what_moves_moves_unless_the_reader_wants_less_motion():
    page = Page(render_report(data(moving="R0lGODlh")))
    (source,) = page.all("source")
    assert source["srcset"] == "data:image/gif;base64,R0lGODlh"
    assert source["media"] == "(prefers-reduced-motion: no-preference)"
    assert not Page(render_report(data())).all("source")


def test_what_a_run_lacks_is_left_out_of_its_page():
    page = Page(render_report(RUNS["pretraining alone"]))
    assert "nothing was labelled" in page.text
    assert not any(title in page.text for title in ("On the test split", "How far a few labels go", "fill in"))
    assert "R squared is 0.910" in Page(render_report(RUNS["numbers"])).text
    several = Page(render_report(RUNS["several labels"])).text
    assert "mean average precision is 0.610" in several
    assert "random encoder 0.250" in several


def test_no_name_can_become_a_tag():
    bad = data(
        recipe=HOSTILE,
        modality=HOSTILE,
        recipe_values={"name": HOSTILE},
        cards=[
            (HOSTILE, card(unreadable=[{"file": HOSTILE, "reason": HOSTILE}], classes={HOSTILE: {
                "train": 1, "val": 1, "test": 1}}))
        ],
        results=results(classes=(HOSTILE, "dog"), label_efficiency=GOOD),
        times=[StageTime(HOSTILE, 1.0)],
        environment={HOSTILE: HOSTILE},
    )  # fmt: skip
    bad.results["label_efficiency"] = {**GOOD, "baseline": {"name": HOSTILE, "values": [[0.5] * 3]}}
    page = Page(render_report(bad))
    assert not page.all("script")
    assert len(page.all("img")) == 1
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)


# --- what it says ---


@pytest.mark.parametrize(
    ("table", "said", "unsaid"),
    [
        (GOOD, ["reaches 86.0 %", "80.0 %: +6.0 points", "(3 seeds)", "without any network, reaches 70.0 %"], "zero"),
        (efficiency([0.7, 0.9], [0.8, 0.8], 0.1), ["0.0 points", "spans zero: no clear difference"], "both"),
        (efficiency([0.5, 0.52], [0.8, 0.81], 0.6), ["-29.5 points", "better than the pretrained encoder"], "both"),
        (efficiency([0.2, 0.21], [0.1, 0.1], 0.6), ["better than both: 60.0 %"], "no clear"),
        (efficiency([0.5], [0.3], 0.4), ["+20.0 points, no interval from one seed"], "inf"),
    ],
)
def test_the_verdict_tells_good_news_and_bad(table, said, unsaid):
    sentence = words.verdict(results(label_efficiency=table), {})
    assert all(part in sentence for part in said), sentence
    assert unsaid not in sentence


def test_the_verdict_is_about_the_entry_nearest_to_five_labels():
    assert words.near_five([1, 4, 25]) == 1


def test_what_rounds_to_nothing_has_no_sign():
    assert [words.points(x) for x in (-0.0001, 0.0, 0.0123, -0.05)] == ["0.0", "0.0", "+1.2", "-5.0"]


def test_the_commonest_mistakes_come_first():
    assert words.confused(["a", "b"], [[5, 1], [3, 5]]) == "Most often mistaken: b for a (3), a for b (1)."
    assert "No test item" in words.confused(["a", "b"], [[5, 0], [0, 5]])


def test_limits_fit_the_run():
    few = " ".join(words.limits(results(), [card()]))
    assert "2 classes have fewer than 20 test items" in few
    assert "could not be read" not in few
    assert "could not be read" in " ".join(words.limits(None, [card(unreadable=[{"file": "a", "reason": "b"}])]))


def test_the_slowest_stage_is_named_with_its_share():
    assert "The slowest part was pretrain: 95 % of 1.7 min." in Page(render_report(data())).text


def test_pixels_that_were_not_scaled_are_not_said_to_be():
    assert "scaled back" in render_report(data())
    assert "scaled back" not in render_report(data(recipe_values={"pretrain": {"norm_pix": "none"}}))


def test_a_long_list_of_bad_files_is_cut_and_its_reasons_are_counted():
    bad = [{"file": f"f{i}", "reason": "empty" if i % 4 else "truncated"} for i in range(MOST_FILES + 60)]
    page = Page(render_report(data(cards=[("Data", card(unreadable=bad))])))
    assert "60 more are listed in card.json." in page.text
    assert "empty 195" in page.text
    assert "truncated 65" in page.text
    assert f"f{MOST_FILES - 1} " in page.text
    assert f"f{MOST_FILES} " not in page.text


# --- charts ---


def corners(svg):
    text = re.search(r'points="([^"]*)"', svg).group(1)
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


def test_a_higher_value_stands_higher_and_inside_the_picture():
    places = corners(line_chart([Line("l", [(1, 0.2), (5, 0.5), (25, 0.9)], "a")], x_label="", y_label="", title="t",
                                log_x=True))  # fmt: skip
    (x0, y0), (x1, y1), (x2, y2) = places
    assert y0 > y1 > y2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # 1, 5, 25 are as far apart on a log axis.
    assert all(0 <= x <= 640 and 0 <= y <= 300 for x, y in places)


def test_a_diverged_or_very_long_curve_is_drawn_from_what_can_be_drawn():
    points = [(step, float("nan") if step % 7 == 0 else 1 / (step + 1)) for step in range(50_000)]
    places = corners(line_chart([Line("l", points, "a")], x_label="", y_label="", title="t"))
    assert 100 < len(places) <= MOST_POINTS + 1
    assert all(a < b for (a, _), (b, _) in pairwise(places))
    assert not line_chart([Line("l", [(1, float("inf"))], "a")], x_label="", y_label="", title="t")


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0, 1e-9, 1e9])
def test_a_flat_or_single_curve_has_a_picture(value):
    assert corners(line_chart([Line("l", [(1, value), (2, value)], "a")], x_label="", y_label="", title="t"))
    assert corners(line_chart([Line("l", [(1, value)], "a")], x_label="", y_label="", title="t", log_x=True))


@pytest.mark.parametrize("percent", [True, False])
@pytest.mark.parametrize(
    ("low", "high"), [(0.59, 0.601), (0, 1), (0.9990, 0.9999), (2.3, 2.31), (-4, 4), (0, 3e6), (1e-7, 9e-7)]
)
def test_no_two_ticks_read_the_same(low, high, percent):
    labels = [text for _, text in _ticks(low, high, percent=percent)]
    assert len(labels) >= 2
    assert len(set(labels)) == len(labels)


def test_shares_are_labelled_in_percent_and_other_values_plainly():
    line = [Line("l", [(0, 0.2), (1, 0.9)], "a")]
    shares = Page(line_chart(line, x_label="", y_label="", title="t", percent=True)).words
    assert {"20 %", "40 %", "60 %", "80 %"} <= set(shares)
    plain = Page(line_chart(line, x_label="", y_label="", title="t")).words
    assert {"0.2", "0.4", "0.6", "0.8"} <= set(plain)


def test_the_shade_of_a_cell_is_its_share_of_the_truth():
    page = Page(heat_map([[3, 1], [0, 0]], ["a", "b"]))
    shares = [float(cell["style"].split(":")[1]) for cell in page.all("td") if "style" in cell]
    assert shares == [0.75, 0.25, 0.0, 0.0]


# --- contrast, by the formula of WCAG 2.1, from the style sheet itself ---


def palettes():
    css = (files("core.evaluation") / "report.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+):([^;]+);", block)) for block in re.findall(r":root \{(.*?)\}", css)[:2])
    return {"light": light, "dark": {**light, **dark}}


def colour(text):
    digits = text.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    return [int(digits[i : i + 2], 16) for i in (0, 2, 4)]


def luminance(rgb):
    linear = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_and_lines_can_be_told_from_the_paper(mode):
    p = palettes()[mode]
    for ground in ("paper", "card"):
        assert all(contrast(colour(p[ink]), colour(p[ground])) >= 4.5 for ink in ("ink", "soft"))
        assert all(contrast(colour(p[line]), colour(p[ground])) >= 3 for line in "abc")


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_number_can_be_read_on_every_shade_of_the_heat_map(mode):
    p = palettes()[mode]
    heat, paper = [int(v) for v in p["heat"].split(",")], colour(p["paper"])
    for share in np.linspace(0, 1, 11):
        alpha = share * float(p["strength"])
        cell = [alpha * h + (1 - alpha) * g for h, g in zip(heat, paper, strict=True)]
        assert contrast(colour(p["ink"]), cell) >= 4.5, share


def test_sounds_stand_in_rows_with_a_player_for_each_column_and_need_no_request():
    heard = [ReportSound(sample, column, ".flac", "AAAA") for column in ("original", "masked") for sample in ("1", "2")]
    page = Page(render_report(data(sounds=heard)))
    players = page.all("audio")
    assert [player["aria-label"] for player in players] == [
        "sample 1, original", "sample 1, masked", "sample 2, original", "sample 2, masked",
    ]  # fmt: skip
    assert {player["src"] for player in players} == {"data:audio/flac;base64,AAAA"}
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "media-src data:" in policy
    assert not Page(render_report(data())).all("audio")


def test_what_a_recipe_remarks_stands_among_the_limits():
    page = Page(render_report(data(recipe_values={"evaluate": {"remarks": ["One voice per class & no more."]}})))
    assert "One voice per class & no more." in page.text
