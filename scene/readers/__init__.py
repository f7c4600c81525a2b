"""Cameras and photos: COLMAP models, transforms.json, picture files and undistortion; `capture` combines them.

Objects, sentences and splits are annotations of a dataset and belong to `scene.layouts`.
"""
