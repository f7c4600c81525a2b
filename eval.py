"""python eval.py -m MODEL: how well the sentences of a trained model select their objects in the test views.

Renders missing masks, compares every (test view, sentence) with its ground truth, and writes results.json,
per_sentence.csv, report.html and contact_sheet.jpg into the model folder.

    python eval.py -m output/ramen                                 # the newest iteration, threshold 0.5
    python eval.py -m output/ramen --protocol released             # as the released script scores (docs/EVALUATION.md)
    python eval.py -m output/ramen --iteration 15000 --threshold 0.4 --rerender
    python eval.py -m output/ramen --predictions other/masks       # <view id>/<sentence id>.png of another method;
                                                                   # the four files go there, not into the model
    python eval.py -m output/ramen --rgb                           # PSNR and SSIM of the RGB stage: rgb_results.json
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arguments import EvaluationParams, ModelParams, PipelineParams, parse
from evaluation.curves import read_log
from evaluation.pairs import Pair, evaluate, read_prediction, summarize_pairs, write_csv
from evaluation.protocols import PROTOCOLS, Protocol
from evaluation.report import FURTHER, Example, build_report, format_figure, percent
from evaluation.responses import measure_responses
from evaluation.rgb import evaluate_rgb, has_rgb_only
from inference.predict import Opened, open_trained, saved_model_flags, scene_requests
from referring.decoding import THRESHOLD
from scene.dataset import Scene
from scene.model_folder import iterations
from utils.errors import UserError, run
from utils.files import write_json, write_text
from utils.images import GREEN, add_caption, contact_sheet, data_uri, enlarge, overlay, write_image
from utils.metrics import resized_mask
from utils.scripts import git_revision, setup_logging

EXAMPLES = 6  # pairs in each part of the contact sheet
REPORT_WIDTH = 360  # pixels of a picture inside report.html


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate the model that the flags name (those of this process if None)."""
    setup_logging()
    groups = [ModelParams, PipelineParams, EvaluationParams]
    model, pipeline, evaluation = parse(__doc__.split("\n")[0], groups, argv, saved=saved_model_flags)
    if evaluation.rgb or has_rgb_only(model.model_path):
        evaluate_rgb(model, pipeline, evaluation.iteration)
        return
    opened = open_trained(model, pipeline, evaluation.iteration, evaluation.threshold)
    trained, scene = opened.trained, opened.scene
    protocol = PROTOCOLS[scene.dataset if evaluation.protocol == "auto" else evaluation.protocol]
    if evaluation.predictions is None:
        folder = opened.predictions("test")
        opened.predictor.write(folder, scene_requests(scene.test), evaluation.rerender)
        masks, out = folder.root / "masks", trained.path
    else:
        masks = out = evaluation.predictions
        if not masks.is_dir():
            raise UserError(f"--predictions {masks} is not a folder; expected <view id>/<sentence id>.png in it.")
    pairs = evaluate(scene.test, masks)
    needs_responses = evaluation.predictions is None and evaluation.responses
    responses = measure_responses(opened.predictor, scene.test) if needs_responses else None
    results = {
        "scene": scene.name,
        "dataset": scene.dataset,
        "protocol": describe_protocol(protocol, scene, evaluation),
        "protocol_name": protocol.name,
        "deviations": find_deviations(protocol, opened, evaluation),
        "iteration": trained.iteration,
        "threshold": evaluation.threshold,
        **summarize_pairs(pairs, protocol, responses),
        "git_revision": git_revision(),
        "seed": trained.config.get("TrainingParams", {}).get("seed"),
        "text_encoder": opened.text_encoder,
    }
    write_csv(out, pairs, scene.path)
    write_json(out / "results.json", results)
    write_report(out, results, pairs)
    print(format_table(results))
    print(f"\nwritten to {out}: results.json, per_sentence.csv, report.html, contact_sheet.jpg")


def describe_protocol(protocol: Protocol, scene: Scene, evaluation: EvaluationParams) -> str:
    """Return the definition of the numbers, for results.json: two mIoU are comparable only under the same protocol."""
    masks = f"2D rendered scores, foreground = sigmoid > {evaluation.threshold:g}, uncovered pixels are background"
    if evaluation.predictions is not None:
        masks = f"masks given with --predictions {evaluation.predictions}"
    return (
        f"{protocol.name}: {protocol.meaning}, in per cent, test views: {scene.split_rule}; {masks}; "
        "acc@t: share of pairs with IoU >= t in per cent; a missing prediction is IoU 0; pairs with empty ground truth "
        "stay out of the mean"
    )


def find_deviations(protocol: Protocol, opened: Opened, evaluation: EvaluationParams) -> list[str]:
    """Return how this run differs from the protocol, in words; empty for numbers to report."""
    found, saved = [], iterations(opened.trained.path, "referring")
    if evaluation.predictions is None and evaluation.threshold != THRESHOLD:
        found.append(f"threshold {evaluation.threshold:g} instead of {THRESHOLD:g}")
    if evaluation.predictions is None and saved and opened.trained.iteration != saved[-1]:
        found.append(f"iteration {opened.trained.iteration} instead of the last one, {saved[-1]}")
    if protocol.dataset != opened.scene.dataset:
        found.append(f"a scene of the layout {opened.scene.dataset} instead of {protocol.dataset}")
    return found


def write_report(folder: Path, results: dict[str, Any], pairs: list[Pair]) -> None:
    """Write report.html and contact_sheet.jpg."""
    groups: dict[str, list[Example]] = {}
    sheet = []
    for heading, members in find_extremes(pairs).items():
        groups[heading] = []
        for rank, pair in enumerate(members):
            photo, truth, predicted = draw_pictures(pair)
            uri = None if predicted is None else data_uri(predicted, REPORT_WIDTH)
            example = Example(pair, data_uri(photo, REPORT_WIDTH), data_uri(truth, REPORT_WIDTH), uri)
            groups[heading].append(example)
            if rank < 2:
                shown = photo // 4 if predicted is None else predicted
                iou = f"prediction: IoU {100 * pair.score.iou:.1f}"
                verdict = "no prediction: IoU 0" if pair.score.missing else iou
                captions = (pair.referral.sentence, "ground truth", verdict)
                sheet.append([add_caption(p, c) for p, c in zip((photo, truth, shown), captions, strict=True)])
    page = build_report(results, pairs, groups, read_log(folder / "log.jsonl"))
    write_text(folder / "report.html", page)
    if sheet:
        write_image(folder / "contact_sheet.jpg", contact_sheet(sheet))


def find_extremes(pairs: list[Pair], count: int = EXAMPLES) -> dict[str, list[Pair]]:
    """Return the best, median and worst pairs by IoU, `count` of each or fewer if there are few; no pair twice."""
    ranked = sorted(
        (p for p in pairs if not math.isnan(p.score.iou)),
        key=lambda p: (-p.score.iou, p.view.id, p.referral.sentence_id),
    )
    count = min(count, max(1, len(ranked) // 3))
    best, worst = ranked[:count], ranked[max(count, len(ranked) - count) :]
    rest = ranked[count : len(ranked) - count]
    start = max(0, (len(rest) - count) // 2)
    return {"Best": best, "Median": rest[start : start + count], "Worst": worst[::-1]}


def draw_pictures(pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return photo, ground truth and prediction (None if missing) of a pair, RGB, of one size."""
    photo, truth, mask = pair.view.image(), pair.view.mask(pair.referral), read_prediction(pair.prediction)
    predicted = None if mask is None else overlay(photo, resized_mask(mask, photo.shape[:2]))
    return enlarge(photo), overlay(photo, truth, GREEN), predicted


def format_table(results: dict[str, Any]) -> str:
    """Format the numbers as text: a line for each category, then the mean and the further figures."""
    per_category = results["per_category"]
    width = min(40, max(len(name) for name in [*per_category, "all pairs"]))
    lines = [f"{'category':{width}}  pairs    mIoU  Acc@0.25  Acc@0.5"]
    for name, values in [*per_category.items(), ("all pairs", results)]:
        if values is results:
            lines.append("-" * len(lines[0]))
        numbers = f"{percent(values['mIoU']):>8}{percent(values['acc@0.25']):>10}{percent(values['acc@0.5']):>9}"
        lines.append(f"{name[:width]:{width}}  {values['pairs']:5}{numbers}")
    further = {label: format_figure(results, key) for key, label in FURTHER.items()}
    lines.append("further: " + ", ".join(f"{label} {text}" for label, text in further.items() if text))
    empty = results["empty_ground_truth"]
    if empty["pairs"]:
        lines.append(
            f"pairs with empty ground truth, out of the mean: {empty['pairs']}; something was predicted in "
            f"{empty['with_foreground']} of them, on average {percent(empty['false_positive_percent'])} % of a picture"
        )
    for key, meaning in (("missing", "count as IoU 0"), ("resized", "had another size than their ground truth")):
        names = results[f"{key}_predictions"]
        if names:
            shown = "".join(f"\n  {name}" for name in names[:5])
            more = f"\n  and {len(names) - 5} more" if len(names) > 5 else ""
            lines.append(f"{key} predictions, which {meaning}: {len(names)}{shown}{more}")
    lines += [f"not the protocol {results['protocol_name']}: {text}" for text in results.get("deviations", [])]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
