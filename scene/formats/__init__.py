"""Gaussian models in the files of other programs: `.splat`, SuperSplat's compressed `.ply`, `.spz`.

`files` chooses by a file's name and content and is what the rest of the program calls; each other module is one
format. The standard .ply of 3DGS, in which models are kept, is `scene.formats.ply`. docs/DATA.md says what each
format keeps and how exactly.
"""
