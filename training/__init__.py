"""The two training stages and the loop that drives them.

`rgb` and `referring` know how to take one step, `uploads` keeps what they look at on the GPU; `session` knows logs,
checkpoints, signals and --resume. Nothing here parses flags or reads scene files.
"""
