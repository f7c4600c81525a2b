"""The method of the paper. Read `reference` first: its equations in plain PyTorch.

`field` has the parameters and the forward pass, `losses` the contrastive losses, `text_encoder` the frozen encoder,
`decoding` turns scores into masks, and kernels/ computes the scores fast. Rendering and training are elsewhere.
"""
