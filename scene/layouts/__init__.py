"""The dataset layouts Ref-LERF, LERF-OVS and 3D-OVS: splits, sentences and masks, loaded into a `scene.dataset.Scene`.

`loader` detects the layout of a folder; each other layout module reads one; `annotations` holds what they share.
`mask_confidence` and `ignore_masks` read optional files about training masks. Masks are made in `pseudo_masks/`.
"""
