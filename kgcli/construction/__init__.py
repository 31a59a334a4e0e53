"""Construction of compositional training data from captioned images: caption, entities, masks, crops, filters.

Source: KOSMOS-G (arXiv:2310.02992), Figure 4, and its released data script.
"""
