"""Files of Gaussians: the standard 3DGS `.ply`, SuperSplat's compressed `.ply`, `.splat` and `.spz`.

Each module is one format; `files` chooses among them by a file's name and content, and `python -m scene.formats`
converts. docs/DATA.md says what each format keeps and how exactly. Checkpoints and model folders, which hold the
referring field too, are `scene.checkpoints` and `scene.model_folder`.
"""
