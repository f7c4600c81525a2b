"""From predicted masks to numbers and pages.

`pairs` scores every (view, sentence) and collects results.json; `protocols` defines which pairs count and how they are
averaged; `responses` adds the figures that need the model's logits, such as localisation and other thresholds. `report`
and `curves` build report.html. `rgb` evaluates the RGB stage (`eval.py --rgb`), `baselines` the methods without a
referring field that benchmarks compare with. Metrics of a single mask are in utils/metrics.py.
"""
