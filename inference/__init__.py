"""Using a trained model: its masks, selections of Gaussians, exports and videos.

`trained_model` loads a model folder; `predict` renders its sentences, in memory and to files, and `captured_scores`
makes queries fast on a GPU. `selection` finds the Gaussians of a sentence, `export` writes them to files and compares
them with `labels`, `video` renders the cameras of `camera_path`. `training_masks` renders the masks for the second
model of `train.py --two_stage`. Metrics are in evaluation/, the step from scores to masks in referring/decoding.py.
"""
