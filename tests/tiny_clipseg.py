"""A folder of CLIPSeg at toy size, randomly initialised: real model, tokenizer and settings of the pixels."""

import json
import string

import torch
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

SIDE = 32  # pixels the model sees
PREPROCESSOR = {  # as CIDAS/clipseg-rd64-refined has it, but for the size
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "size": SIDE,
}


MARKS = ("<|startoftext|>", "<|endoftext|>")


def write_clip_tokenizer(folder):
    """Write a tokenizer of CLIP whose tokens are letters; return its vocabulary."""
    letters = [letter + end for end in ("", "</w>") for letter in string.ascii_lowercase]
    vocab = {token: place for place, token in enumerate([*letters, *MARKS])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return vocab


def write_clipseg(folder, seed=0, bias=0.0):
    """Write it; `bias` is added to every logit."""
    folder.mkdir(parents=True)
    vocab = write_clip_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    part = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    ids = {"bos_token_id": vocab[MARKS[0]], "eos_token_id": vocab[MARKS[1]], "pad_token_id": vocab[MARKS[1]]}
    cfg = CLIPSegConfig(
        text_config={**part, **ids, "vocab_size": len(vocab), "max_position_embeddings": 77},
        vision_config={**part, "image_size": SIDE, "patch_size": 8},
        projection_dim=16,
        reduce_dim=8,
        extract_layers=[0, 1, 2],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPSegForImageSegmentation(cfg)
        for weight in model.parameters():  # far from 0, so that words and pictures matter
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.3)
        model.decoder.transposed_convolution.bias.data += bias
    model.save_pretrained(folder)
    return folder
