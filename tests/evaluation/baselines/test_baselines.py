"""Laws of the baselines that learn subjects or read images by diffusers' own classes."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import make_diffusion
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from kgcli.config import SamplingConfig
from kgcli.errors import IncompatibleError, MissingError, UsageError
from kgcli.evaluation.baselines import table
from kgcli.evaluation.baselines.base import MethodOptions
from kgcli.evaluation.baselines.decoder import TextDecoder, find_decoder
from kgcli.evaluation.baselines.dreambooth import LORA_WEIGHTS, DreamBooth
from kgcli.evaluation.baselines.ip_adapter import IpAdapter
from kgcli.evaluation.baselines.textual_inversion import TOKEN, WEIGHTS, TextualInversion, word_of
from kgcli.evaluation.baselines.words import name_subject, reference_names, split_subject
from kgcli.evaluation.plan import Item
from kgcli.training import parallel
from kgcli.training.stages.clip import clip_tokenizer

QUICK = {
    TextualInversion: (("steps", "4"), ("batch", "2"), ("save_every", "2")),
    DreamBooth: (("steps", "4"), ("batch", "2"), ("save_every", "2"), ("class_pictures", "2"), ("rank", "2")),
}
METHODS = list(QUICK)


def make_item(text="a dog on the beach", seed=3, **fields):
    known = {"path": "p.png", "unit": "u", "subject": "dog_2", "prompt": 0, "image": 0, "seed": seed}
    return Item(
        **known
        | {"input_text": "<image> on the beach", "scored_text": text, "inputs": ("dog_2/00.png",), "class_noun": "dog"}
        | fields
    )


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    diffusion = make_diffusion()
    diffusion.unet.save_pretrained(folder / "unet")
    diffusion.vae.save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(
        '{"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", '
        '"clip_sample": false, "steps_offset": 1}'
    )
    tokenizer = clip_tokenizer(["a dog on the beach", "a red dog", "a cat in the snow"], 300, 12)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for subject, colour in (("dog_2", (200, 30, 60)), ("cat_1", (10, 180, 90))):
        (folder / subject).mkdir()
        for index in range(2):
            Image.new("RGB", (8, 8), colour).save(folder / subject / f"0{index}.png")
    return folder


def make(kind, decoder, *extra, **options):
    given = dict(QUICK.get(kind, ())) | dict(extra)
    options = {"device": "cpu", "sampling": SamplingConfig(num_inference_steps=2)} | options
    return kind(MethodOptions(decoder=str(decoder), extra=tuple(given.items()), **options))


def learn(method, folder, data, subject="dog_2"):
    items = [make_item(subject=subject, inputs=(f"{subject}/00.png",))]
    method.prepare(subject, items, data, folder / subject)
    return folder / subject


def pixels(images):
    return [image.tobytes() for image in images]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a dog on the beach", "a NAME on the beach"),
        ("a red dog", "a red NAME"),
        ("a cube shaped dog", "a cube shaped NAME"),
        ("a photo", "a NAME on the beach"),  # the noun is not said: what the method reads is told instead
    ],
)
def test_the_name_takes_the_nouns_place(text, told):
    assert name_subject(make_item(text), "NAME") == told


def test_an_article_fits_the_name_after_it():
    assert name_subject(make_item("an owl in the snow", class_noun="owl"), "<subject>") == "a <subject> in the snow"
    assert name_subject(make_item("x", input_text="<image>, red"), "sks dog") == "a sks dog, red"


def test_a_subject_is_told_apart_from_its_place():
    assert split_subject(make_item("a red dog")) == ("red dog", "")
    assert split_subject(make_item("a dog in the snow")) == ("dog", "in the snow")


def test_references_are_the_input_or_all_images_of_its_folder(data):
    assert reference_names([make_item()], data, every=False) == ["dog_2/00.png"]
    assert reference_names([make_item()], data, every=True) == ["dog_2/00.png", "dog_2/01.png"]
    with pytest.raises(IncompatibleError, match="2 images"):
        reference_names([make_item(inputs=("a", "b"))], data, every=False)
    with pytest.raises(MissingError, match="lost.png"):
        reference_names([make_item(inputs=("lost.png",))], data, every=False)


def test_only_the_new_row_moves(decoder, data, tmp_path):
    method = make(TextualInversion, decoder)
    before = {name: tensor.clone() for name, tensor in _weights(method).items()}
    learn(method, tmp_path, data)
    moved = [name for name, tensor in _weights(method).items() if not torch.equal(tensor, before[name])]
    assert moved == ["text_encoder.embeddings.token_embedding.row"]


def test_only_low_rank_weights_move(decoder, data, tmp_path):
    method = make(DreamBooth, decoder)
    before = {name: tensor.clone() for name, tensor in _weights(method).items()}
    learn(method, tmp_path, data)
    moved = {name for name, tensor in _weights(method).items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(".lora_" in name for name in moved)


def _weights(method):
    parts = {"unet": method.decoder.diffusion.unet, "text_encoder": method.decoder.text_encoder}
    return {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}


@pytest.mark.parametrize("kind", METHODS)
def test_learning_changes_images_and_generation_is_a_function_of_the_item(kind, decoder, data, tmp_path):
    items = [make_item(seed=1), make_item("a red dog", seed=2)]
    method = make(kind, decoder)
    dog, cat = learn(method, tmp_path, data), learn(method, tmp_path, data, "cat_1")
    first = pixels(method.draw(items, data, dog))
    other = pixels(method.draw(items, data, cat))
    assert pixels(method.draw(items, data, dog)) == first != other
    assert pixels(make(kind, decoder).draw(items, data, dog)) == first


@pytest.mark.parametrize("kind", METHODS)
def test_a_killed_run_goes_on_to_the_same_bytes(kind, decoder, data, tmp_path, monkeypatch):
    whole = learn(make(kind, decoder), tmp_path / "whole", data)
    killed = make(kind, decoder)
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "clip_grad_norm_", Killer(after=3))
        with pytest.raises(KeyboardInterrupt):
            learn(killed, tmp_path / "killed", data)
    assert not (tmp_path / "killed" / "dog_2").exists()
    assert (tmp_path / "killed" / ".dog_2.partial" / "checkpoints" / "step_0000002").is_dir()
    resumed = learn(make(kind, decoder), tmp_path / "killed", data)
    assert not (tmp_path / "killed" / ".dog_2.partial").exists()
    assert _files(resumed) == _files(whole)


class Killer:
    """torch's clipping of gradients, in which the process dies after some steps."""

    def __init__(self, after):
        self.left = after

    def __call__(self, parameters, norm):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return torch.nn.utils.clip_grad_norm_(parameters, norm)


def _files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", METHODS)
def test_what_was_generated_and_learnt_before_leaves_no_trace(kind, decoder, data, tmp_path):
    one, two = make(kind, decoder), make(kind, decoder)
    learn(one, tmp_path / "one", data, "cat_1")
    one.draw([make_item()], data, tmp_path / "one" / "cat_1")
    assert _files(learn(one, tmp_path / "one", data)) == _files(learn(two, tmp_path / "two", data))


@pytest.mark.parametrize("kind", METHODS)
def test_a_learnt_subject_loads_nothing_and_other_settings_are_refused(kind, decoder, data, tmp_path):
    learn(make(kind, decoder), tmp_path, data)
    again = make(kind, decoder)
    learn(again, tmp_path, data)
    assert again._decoder is None
    with pytest.raises(UsageError, match="other settings"):
        learn(make(kind, decoder, ("seed", "1")), tmp_path, data)


def test_diffusers_reads_the_word(decoder, data, tmp_path):
    method = make(TextualInversion, decoder)
    folder = learn(method, tmp_path, data)
    pipe = StableDiffusionPipeline(**_components(decoder), requires_safety_checker=False)
    pipe.load_textual_inversion(str(folder), weight_name=WEIGHTS)
    text = f"a {word_of('dog_2')}"
    ids = pipe.tokenizer(text, padding="max_length", max_length=12, return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = pipe.text_encoder(ids).last_hidden_state
        torch.testing.assert_close(theirs, method.decoder.encode([f"a {TOKEN}"]))


def test_diffusers_reads_the_low_rank_weights(decoder, data, tmp_path):
    method = make(DreamBooth, decoder)
    folder = learn(method, tmp_path, data)
    pipe = StableDiffusionPipeline(**_components(decoder), requires_safety_checker=False)
    latents, told = torch.randn(1, 4, 4, 4), torch.randn(1, 5, 16)
    base = pipe.unet(latents, 7, told).sample
    pipe.load_lora_weights(str(folder), weight_name=LORA_WEIGHTS)
    theirs = pipe.unet(latents, 7, told).sample
    torch.testing.assert_close(theirs, method.decoder.diffusion.unet(latents, 7, told).sample)
    assert not torch.equal(theirs, base)


def _components(decoder):
    from diffusers import DDIMScheduler
    from transformers import CLIPTokenizer

    diffusion = make_diffusion()
    return {
        "unet": diffusion.unet,
        "vae": diffusion.vae,
        "text_encoder": CLIPTextModel.from_pretrained(decoder / "text_encoder"),
        "tokenizer": CLIPTokenizer.from_pretrained(decoder / "tokenizer"),
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
        "safety_checker": None,
        "feature_extractor": None,
    }


def test_all_of_the_unet_can_learn(decoder, data, tmp_path):
    method = make(DreamBooth, decoder, ("full", "true"), ("class_pictures", "0"))
    assert method.settings["lr"] == DreamBooth.full_rates["small"]
    folder = learn(method, tmp_path, data)
    learnt = method.draw([make_item()], data, folder)
    assert pixels(
        make(DreamBooth, decoder, ("full", "true"), ("class_pictures", "0")).draw([make_item()], data, folder)
    )
    learn(method, tmp_path, data, "cat_1")
    assert pixels(method.draw([make_item()], data, folder)) == pixels(learnt)


def test_images_of_a_class_are_generated_once_by_the_untrained_decoder(decoder, data, tmp_path):
    method = make(DreamBooth, decoder)
    learn(method, tmp_path, data)
    first = _files(next(tmp_path.glob(".class-*")))
    assert len(first) == 2
    shutil.rmtree(next(tmp_path.glob(".class-*")))
    learn(method, tmp_path, data, "cat_1")  # of the same class noun, after another subject was learnt
    assert _files(next(tmp_path.glob(".class-*"))) == first


def test_settings_are_read_by_type_and_unknown_ones_name_the_nearest(decoder):
    assert make(DreamBooth, decoder, ("rank", "3")).facts()["settings"]["rank"] == 3
    with pytest.raises(UsageError, match="no setting step; did you mean steps"):
        make(DreamBooth, decoder, ("step", "3"))
    with pytest.raises(UsageError, match="steps is many; it must be a whole number"):
        make(DreamBooth, decoder, ("steps", "many"))
    with pytest.raises(UsageError, match="steps is 0; it must be at least 1"):
        make(DreamBooth, decoder, ("steps", "0"))
    with pytest.raises(UsageError, match="write input or all"):
        make(TextualInversion, decoder, ("references", "some"))


def test_how_often_it_saves_is_no_fact(decoder):
    one, two = (make(TextualInversion, decoder, ("save_every", n)).facts() for n in ("1", "3"))
    assert one == two


def test_a_decoder_without_text_encoder_is_refused(decoder, tmp_path):
    shutil.copytree(decoder, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "text_encoder")
    with pytest.raises(MissingError, match="text_encoder"):
        find_decoder(str(tmp_path / "bare"), True)
    save_file({"x": torch.zeros(1)}, tmp_path / "sd.safetensors")
    with pytest.raises(IncompatibleError, match="single file"):
        find_decoder(str(tmp_path / "sd.safetensors"), True)


@pytest.fixture(scope="module")
def adapter(decoder, tmp_path_factory):
    """An IP-Adapter of the true layout with random weights."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        projection_dim=6,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "models" / "image_encoder")
    unet = make_diffusion().unet
    weights = {
        "image_proj.proj.weight": torch.randn(4 * 16, 6),
        "image_proj.proj.bias": torch.randn(4 * 16),
        "image_proj.norm.weight": torch.ones(16),
        "image_proj.norm.bias": torch.zeros(16),
    }
    crossing = [name for name in unet.attn_processors if "attn2" in name]
    widths = dict(unet.named_modules())
    for number, name in enumerate(crossing):
        width = widths[name.removesuffix(".processor")].to_k.weight.shape[0]
        for part in ("k", "v"):
            weights[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = torch.randn(width, 16)
    save_file(weights, folder / "models" / "ip-adapter_sd15.safetensors")
    return folder


def test_an_ip_adapter_looks_at_the_image(decoder, adapter, data):
    method = make(IpAdapter, decoder, model=str(adapter))
    items = [make_item(), make_item(inputs=("cat_1/00.png",))]
    dog, cat = pixels(method.draw(items, data, data))
    assert dog != cat
    assert pixels(make(IpAdapter, decoder, model=str(adapter)).draw(items[1:], data, data)) == [cat]
    blind = make(IpAdapter, decoder, ("scale", "0"), model=str(adapter))
    assert len(set(pixels(blind.draw(items, data, data)))) == 1


def test_an_ip_adapter_of_another_width_is_refused(decoder, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "other")
    file = tmp_path / "other" / "models" / "ip-adapter_sd15.safetensors"
    save_file({name: t[:, :8] if "_ip" in name else t for name, t in _contiguous(load_file(file))}, file)
    with pytest.raises(IncompatibleError, match="width 8; this one has 16"):
        make(IpAdapter, decoder, model=str(tmp_path / "other"))


def _contiguous(weights):
    return [(name, tensor[:, :8].contiguous() if "_ip" in name else tensor) for name, tensor in weights.items()]


def test_blip_diffusion_is_gone_and_says_why():
    with pytest.raises(UsageError, match="do not work with transformers 5.*--images"):
        table.make("blip-diffusion", MethodOptions())


def test_methods_with_a_text_encoder_compute_on_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        TextDecoder(find_decoder(None, True), MethodOptions(device="cpu"))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
