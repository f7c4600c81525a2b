"""Training masks from photos and sentences, and masks that agree across views.

`pseudo_mask.py` goes through the `worklist` of training views and objects. Masks come from `grounded_sam` (the
`detector` proposes boxes, the `segmenter` a mask for each box, `candidates` the one to keep) or are `imported`;
`mask_files` writes them, `review` shows what is missing or wrong. `consensus` needs a model of the scene: it
replaces masks that the other views contradict, by the votes of `mask_votes`. Nothing here trains, and training needs
nothing from here.
"""
