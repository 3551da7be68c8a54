"""What the report says of masks."""

import re

from core.evaluation import report_words as words
from core.evaluation.report import ReportData, render_report
from core.evaluation.report_masks import mask_note, mask_rows

RECIPE = {"task": {"kind": "segmentation", "classes": ["none", "left lung", "node"]}}
RESULTS = {
    "classes": ["none", "left lung", "node"],
    "test": {
        "dice": 0.71,
        "dice_left lung": 0.9,
        "dice_node": 0.52,
        "dice_none": 0.99,
        "hd95_left lung": 4.25,
        "hausdorff_left lung": 7.5,
    },
    "intervals": {
        "dice": [0.65, 0.8],
        "dice_left lung": [0.85, 0.95],
        "dice_node": [0.3, 0.7],
        "hd95_left lung": [3, 5],
    },
    "cases": [
        {
            "case": 1,
            "dice": {"none": 0.99, "left lung": 0.9, "node": 0.0},
            "hd95": {"left lung": 4.25, "node": None},
            "hausdorff": {"left lung": 7.5, "node": None},
        },
        {
            "case": 2,
            "dice": {"none": 0.99, "left lung": None, "node": None},
            "hd95": {"left lung": None, "node": None},
            "hausdorff": {"left lung": None, "node": None},
        },
    ],
    "probes": {},
    "groups": 2,
}


def page():
    curves = {"finetune/val_dice": [(1, 0.2), (2, 0.7)]}
    data = ReportData("scans", "some", RECIPE, [], curves=curves, results=RESULTS, tuned_metrics={})
    return re.sub(r"<[^>]+>", " ", render_report(data).split("</style>")[1])


def test_each_class_has_its_figures_and_the_background_comes_last():
    lung, node, none = mask_rows(RESULTS)
    assert lung == ["left lung", "0.900", "0.850 to 0.950", "4.2", "3.0 to 5.0", "7.5", "1"]
    assert node == ["node", "0.520", "0.300 to 0.700", "", "", "", "1"]
    assert none[0] == "none (background)"


def test_what_distances_leave_out_is_said():
    assert "In 1 of 2 pairs" in mask_note(RESULTS)
    whole = RESULTS | {"cases": RESULTS["cases"][1:]}
    assert "pairs" not in mask_note(whole)


def test_the_page_tells_dice_with_its_interval_once():
    text = page()
    assert "the tuned model&#x27;s Dice is 0.710 (95 % interval 0.650 to 0.800)" in text
    assert "Dice of left lung on test" in text
    assert "Fine-tuning, on the validation split" in text
    assert text.count("hd95") == 0
    assert words.headline_of(RECIPE) == "dice"
