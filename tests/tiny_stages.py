"""Folders of the models of construction at toy size, randomly initialised: real classes, tokenizers and processors."""

import json

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def byte_tokenizer(*special, **names):
    """A tokenizer whose tokens are bytes, so that it can write any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*alphabet, "<pad>", "<eos>", *special])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in ("<pad>", "<eos>", *special)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"eos_token": "<eos>", "pad_token": "<pad>", **names})


def seeded(make, seed=0):
    """A model whose weights are far from 0, so that inputs matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
        for weight in model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def write_language_model(folder, kind="qwen3"):
    from transformers import MptConfig, MptForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    tokenizer = byte_tokenizer()
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if kind == "mpt":
        sizes = {"d_model": 16, "n_heads": 2, "n_layers": 1, "expansion_ratio": 2, "max_seq_len": 1024}
        model = seeded(lambda: MptForCausalLM(MptConfig(**sizes, **ids)))
    elif kind == "qwen2":
        model = seeded(lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=1, **ids)))
    else:
        model = seeded(lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=8, **ids)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_blip2(folder):
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessor,
        OPTConfig,
    )

    tokenizer = byte_tokenizer("<image>")
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "word_embed_proj_dim": 16,
    }
    ids = {"bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    cfg = Blip2Config(
        vision_config=Blip2VisionConfig(**SMALL, image_size=28, patch_size=14),
        qformer_config=Blip2QFormerConfig(**SMALL, encoder_hidden_size=16, vocab_size=50),
        text_config=OPTConfig(**text, **ids, vocab_size=len(tokenizer), max_position_embeddings=256),
        num_query_tokens=4,
        image_token_index=image_id,
    )
    seeded(lambda: Blip2ForConditionalGeneration(cfg)).save_pretrained(folder)
    pixels = BlipImageProcessor(size={"height": 28, "width": 28})
    Blip2Processor(pixels, tokenizer, num_query_tokens=4).save_pretrained(folder)
    return folder


def write_grounding_dino(folder):
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "cat", "dog", "hat", "man"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    cfg = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            window_size=2,
            image_size=64,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(**SMALL, vocab_size=2000),
        d_model=64,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=5,
        num_feature_levels=4,
        max_text_len=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GroundingDinoForObjectDetection(cfg).eval()
    model.save_pretrained(folder)
    pixels = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(pixels, tokenizer).save_pretrained(folder)
    return folder


def write_sam2(folder):
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2ImageProcessor,
        Sam2MaskDecoderConfig,
        Sam2Model,
        Sam2Processor,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    backbone = Sam2HieraDetConfig(
        hidden_size=16,
        num_attention_heads=1,
        image_size=[128, 128],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 4, 4],
        global_attention_blocks=[3],  # not the first of a stage, which pools
        window_positional_embedding_background_size=[4, 4],
    )
    cfg = Sam2Config(
        vision_config=Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=[128, 64, 32, 16],
            backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
            fpn_hidden_size=32,
        ),
        prompt_encoder_config=Sam2PromptEncoderConfig(hidden_size=32, image_size=128, patch_size=16),
        mask_decoder_config=Sam2MaskDecoderConfig(
            hidden_size=32, mlp_dim=32, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=32
        ),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sam2Model(cfg).eval()
    model.save_pretrained(folder)
    side = {"height": 128, "width": 128}
    Sam2Processor(Sam2ImageProcessor(size=side, mask_size={"height": 32, "width": 32})).save_pretrained(folder)
    return folder


def write_sam3(folder):
    from transformers import CLIPTextConfig, Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor

    part = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    vision = {
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "window_size": 2,
            "global_attn_indexes": [0],
            "pretrain_image_size": 28,
        },
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }
    tokenizer = byte_tokenizer()
    cfg = Sam3Config(
        vision_config=vision,
        text_config=CLIPTextConfig(
            **{**SMALL, "hidden_size": 32, "projection_dim": 32, "vocab_size": len(tokenizer)},
            max_position_embeddings=32,
            eos_token_id=tokenizer.eos_token_id,
        ).to_dict(),
        geometry_encoder_config={**part, "num_layers": 1},
        detr_encoder_config={**part, "num_layers": 1},
        detr_decoder_config={**part, "num_layers": 2, "num_queries": 5},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2, "num_upsampling_stages": 3},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sam3Model(cfg).eval()
    model.save_pretrained(folder)
    tokenizer.model_max_length = 32
    pixels = Sam3ImageProcessor(size={"height": 56, "width": 56}, mask_size={"height": 16, "width": 16})
    Sam3Processor(pixels, tokenizer).save_pretrained(folder)
    return folder


def write_safety_checker(folder):
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    cfg = CLIPConfig(
        text_config=dict(SMALL), vision_config={**SMALL, "image_size": 28, "patch_size": 14}, projection_dim=8
    )
    seeded(lambda: StableDiffusionSafetyChecker(cfg)).save_pretrained(folder)
    side = {"height": 28, "width": 28}
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=side).save_pretrained(folder)
    return folder


def write_classifier(folder, kind="vit"):
    from transformers import (
        SiglipConfig,
        SiglipForImageClassification,
        SiglipImageProcessor,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessor,
    )

    labels = {"id2label": {0: "normal", 1: "nsfw"}, "label2id": {"normal": 0, "nsfw": 1}}
    side = {"height": 28, "width": 28}
    if kind == "siglip":
        cfg = SiglipConfig(vision_config={**SMALL, "image_size": 28, "patch_size": 14}, **labels)
        seeded(lambda: SiglipForImageClassification(cfg)).save_pretrained(folder)
        SiglipImageProcessor(size=side).save_pretrained(folder)
    else:
        cfg = ViTConfig(**SMALL, image_size=28, patch_size=14, **labels)
        seeded(lambda: ViTForImageClassification(cfg)).save_pretrained(folder)
        ViTImageProcessor(size=side).save_pretrained(folder)
    return folder


def architecture(folder):
    return json.loads((folder / "config.json").read_text())["architectures"]


def write_owlv2(folder):
    from tiny_clipseg import write_clip_tokenizer
    from transformers import (
        CLIPTokenizerFast,
        Owlv2Config,
        Owlv2ForObjectDetection,
        Owlv2ImageProcessor,
        Owlv2Processor,
    )

    folder.mkdir(parents=True)
    vocab = write_clip_tokenizer(folder)
    ids = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1, "pad_token_id": len(vocab) - 1}
    cfg = Owlv2Config(
        text_config={**SMALL, **ids, "vocab_size": len(vocab), "max_position_embeddings": 16},
        vision_config={**SMALL, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    seeded(lambda: Owlv2ForObjectDetection(cfg)).save_pretrained(folder)
    pixels = Owlv2ImageProcessor(size={"height": 64, "width": 64})
    Owlv2Processor(pixels, CLIPTokenizerFast.from_pretrained(folder, model_max_length=16)).save_pretrained(folder)
    return folder


def write_florence2(folder, seed=0):
    from transformers import (
        BartConfig,
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        Florence2VisionConfig,
    )

    places = [f"<loc_{place}>" for place in range(1000)]
    marks = ("<s>", "</s>", "<image>", "<poly>", "</poly>", "<sep>")
    names = {"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": {"image_token": "<image>"}}
    tokenizer = byte_tokenizer(*marks, *places, **names)
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.eos_token_id,
        "forced_eos_token_id": tokenizer.eos_token_id,
    }
    layers = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    vision = {"depths": [1, 1, 1, 1], "embed_dim": [8, 8, 8, 16], "num_heads": [1] * 4, "num_groups": [1] * 4}
    cfg = Florence2Config(
        text_config=BartConfig(d_model=16, vocab_size=len(tokenizer), max_position_embeddings=128, **layers, **ids),
        vision_config=Florence2VisionConfig(**vision, window_size=2, projection_dim=16, max_temporal_embeddings=4),
        image_token_id=image_id,
        **ids,
    )
    seeded(lambda: Florence2ForConditionalGeneration(cfg), seed).save_pretrained(folder)
    side = {"height": 64, "width": 64}
    pixels = CLIPImageProcessor(size=side, crop_size=side)
    pixels.image_seq_length = 5  # 2 x 2 places and their mean
    Florence2Processor(pixels, tokenizer, post_processor_config={"polygons": {}}).save_pretrained(folder)
    return folder


CHAT = (
    "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)


def write_qwen3_vl(folder, seed=2):
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = byte_tokenizer(*marks)
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    cfg = Qwen3VLConfig(
        text_config={
            **SMALL, **ends, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": len(tokenizer),
            "rope_parameters": rope,
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
        **dict(zip(names, map(tokenizer.convert_tokens_to_ids, marks), strict=True)),
    )  # fmt: skip
    seeded(lambda: Qwen3VLForConditionalGeneration(cfg), seed).save_pretrained(folder)
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    pixels = Qwen2VLImageProcessor(size=size, patch_size=16)
    video = Qwen3VLVideoProcessor(size=size, patch_size=16)
    Qwen3VLProcessor(pixels, tokenizer, video, chat_template=CHAT).save_pretrained(folder)
    return folder
