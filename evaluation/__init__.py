"""From predicted masks to numbers: pairs of view and sentence, the protocols, what thresholds change, baselines.

Metrics of one mask are in utils/metrics.py, pictures and pages in utils/; eval.py and benchmarks/run.py call this.
"""
