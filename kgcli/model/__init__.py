"""KOSMOS-G as code, in the reading order of the paper's Figure 2.

    layers     what the others are built from: attention, feed-forward, sub-LN
    vision     1  CLIP ViT tower           images (N, 3, S, S)      -> patches (N, P, V)
    resampler  2  attentive pooling        patches                  -> pictures (N, Q, D)
    mllm       3  Magneto causal decoder   words and pictures       -> hidden (B, T, D)
    aligner    4  AlignerNet               hidden                   -> conditioning (B, S, d)
    diffusion  5  the frozen decoder       conditioning, noise      -> latents, picture
    kosmosg    the figure: encode() is 1 to 4
    weights    one model file: read, check against a module, write
    convert    the names other projects give to the same weights
    published  their files, opened without running anything in them
    sizes      what weights a configuration asks for, and the other way about
    source     a published checkpoint, recognised and found whole

Nothing here knows of prompts, files of data or devices: tensors in, tensors out.
"""
