"""KOSMOS-G as code, in the reading order of the paper's Figure 2.

    layers     what the others are built from: attention, feed-forward, sub-LN
    vision     1  CLIP ViT tower           images (N, 3, S, S)      -> patches (N, P, V)
    resampler  2  attentive pooling        patches                  -> image vectors (N, Q, D)
    mllm       3  Magneto causal decoder   words and image vectors  -> hidden (B, T, D)
    aligner    4  AlignerNet               hidden                   -> conditioning (B, S, d)
    diffusion  5  the frozen decoder       conditioning, noise      -> latents, image
    kosmosg    the figure: encode() is 1 to 4

Tensors in, tensors out: prompts, data files and devices are handled elsewhere.
"""
