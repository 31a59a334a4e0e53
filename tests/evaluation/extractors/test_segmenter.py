"""Masks by a segmenter that is told the subject's noun: found first, kept, named in protocols."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from benchmark_data import write_dreambench
from PIL import Image
from safetensors.torch import load_file, save_file
from subject_run import SUBJECTS, Colours, build_run
from tiny_clipseg import PREPROCESSOR, SIDE, write_clipseg

from kgcli.errors import IncompatibleError, MissingError, UsageError
from kgcli.evaluation.benchmarks.dreambench import multi_plan
from kgcli.evaluation.benchmarks.dreambench_data import SUBJECTS as REAL_SUBJECTS
from kgcli.evaluation.benchmarks.dreambench_data import open_dreambench
from kgcli.evaluation.extractors.base import Extractors
from kgcli.evaluation.extractors.segmenter import ClipSegmenter
from kgcli.evaluation.extractors.segmenter_files import REPOSITORY, find_segmenter
from kgcli.evaluation.extractors.weight_files import TABLE
from kgcli.evaluation.plan import DreamBenchOptions
from kgcli.evaluation.report.compare import ScoredRun, check_comparable
from kgcli.evaluation.run.masks import masks_from_segmenter
from kgcli.evaluation.run.score import score_subjects
from kgcli.evaluation.run.scoring import Scoring, find_resources
from kgcli.evaluation.run.suites import each_subject
from kgcli.evaluation.scores import Scores
from kgcli.files import sha256 as hash_of

NOUNS = {name: name for name in SUBJECTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clipseg(tmp_path_factory.mktemp("clipseg") / "tiny")


@pytest.fixture(scope="module")
def segmenter(folder):
    return ClipSegmenter(find_segmenter(str(folder)))


def make_image(size=(50, 40), seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


class Counting:
    """A segmenter that counts the images it is shown."""

    def __init__(self, segmenter):
        self.segmenter, self.seen = segmenter, []

    def facts(self):
        return self.segmenter.facts()

    def mask(self, image, noun):
        self.seen.append(noun)
        return self.segmenter.mask(image, noun)


def score(root, plan, references, segmenter, out="run"):
    extractors = Extractors(Colours("dino"), Colours("clip"))
    masks = masks_from_segmenter(segmenter, NOUNS, root / out / "masks")
    return score_subjects(root / "run", plan, references, extractors, masks=masks, out=root / out)


def test_the_model_sees_pillows_pixels_bit_for_bit(segmenter):
    found = segmenter._processor(text=["a dog"], images=[make_image()], return_tensors="pt").pixel_values[0].numpy()
    resized = np.asarray(make_image().resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    # As the library: bytes times 1/255 in float64, then float32.
    pixels = (resized.astype(np.float64) * (1 / 255)).astype(np.float32)
    mean, std = (np.array(PREPROCESSOR[name], np.float32) for name in ("image_mean", "image_std"))
    assert np.array_equal(found, ((pixels - mean) / std).transpose(2, 0, 1))


def test_a_mask_is_the_models_answer_to_the_noun(folder, segmenter):
    """Against the bare library: the same logits, made as large as the image, cut at one half."""
    from transformers import CLIPSegForImageSegmentation

    bare = CLIPSegForImageSegmentation.from_pretrained(folder).eval()
    inputs = segmenter._processor(text=["a dog"], images=[make_image()], return_tensors="pt")
    letters = json.loads((folder / "vocab.json").read_text())
    spelt = ["<|startoftext|>", "a</w>", "d", "o", "g</w>", "<|endoftext|>"]
    assert inputs.input_ids[0].tolist() == [letters[one] for one in spelt]
    with torch.inference_mode():
        logits = bare(**inputs).logits
    expected = torch.nn.functional.interpolate(logits.sigmoid()[None], size=(40, 50), mode="bilinear")[0, 0]
    assert torch.equal(segmenter.probabilities(make_image(), "dog"), expected)
    mask = segmenter.mask(make_image(), "dog")
    assert mask.size == (50, 40) and mask.mode == "L"
    assert np.array_equal(np.asarray(mask) == 255, expected.numpy() >= 0.5)
    assert set(np.unique(np.asarray(mask))) == {0, 255}
    assert not torch.equal(segmenter.probabilities(make_image(), "teapot"), expected)
    assert segmenter.mask(make_image(), "dog").tobytes() == mask.tobytes()


def test_a_protocol_names_class_weights_prompt_and_threshold(folder, segmenter):
    facts = segmenter.facts()
    assert facts["segmenter"] == "transformers CLIPSegForImageSegmentation" and facts["prompt"] == "a {noun}"
    assert facts["weights_sha256"] == hash_of(folder / "model.safetensors")
    assert "0.5" in facts["threshold"] and facts["precision"] == "float32" and "32" in facts["transform"]


def test_masks_are_kept_and_scoring_goes_on_with_them(tmp_path, segmenter):
    plan, references = build_run(tmp_path)
    counting = Counting(segmenter)
    scores = score(tmp_path, plan, references, counting)
    assert sorted(counting.seen) == sorted([*NOUNS] * 7)  # 4 images and 3 photos of each
    assert len(list((tmp_path / "run" / "masks").glob("cat-00_0-cat-*.png"))) == 1
    whole = (tmp_path / "run" / "scores.json").read_bytes()
    for vectors in (tmp_path / "run" / "features").iterdir():
        vectors.unlink()
    kept = sorted((tmp_path / "run" / "masks").iterdir())
    kept[0].write_bytes(b"damaged")
    assert score(tmp_path, plan, references, counting) == scores
    assert len(counting.seen) == 21 + 1 and (tmp_path / "run" / "scores.json").read_bytes() == whole
    score(tmp_path, plan, references, counting)
    assert len(counting.seen) == 22
    masked = {one.path: one.values["dino_masked_input"] for one in scores.pictures}
    assert masked != {one.path: one.values["dino_input"] for one in scores.pictures}


def test_numbers_are_the_cosines_of_what_the_masks_leave(tmp_path, segmenter):
    """Subjects in turn, and one image that is asked for two of them: each with its own noun."""
    plan, references = build_run(tmp_path)
    turns = [plan.items[place] for place in (0, 4, 8, 1, 5, 9)]
    shared = dataclasses.replace(turns[0], subject="dog")
    scores = score(tmp_path, dataclasses.replace(plan, items=(*turns, shared)), references, segmenter)
    dino = Colours("dino")
    for one in scores.pictures:
        files = [tmp_path / "run" / one.path, tmp_path / "data" / references[one.subject].input]
        left = []
        for image in map(Image.open, files):
            mask = np.asarray(segmenter.mask(image, one.subject)) == 255
            assert mask.any()
            left.append(Image.fromarray(np.where(mask[..., None], np.asarray(image), np.uint8(255))))
        rows = dino.images(left).astype(np.float64)
        assert one.values["dino_masked_input"] == pytest.approx(rows[0] @ rows[1], abs=1e-6)
    assert len({one.values["dino_masked_input"] for one in scores.pictures}) == 7


def test_vectors_are_those_of_one_noun_and_one_segmenter(tmp_path, segmenter):
    plan, references = build_run(tmp_path)
    extractors = Extractors(Colours("dino"), Colours("clip"))
    for nouns, seen in ((NOUNS, 21), (NOUNS, 0), ({**NOUNS, "cat": "kitten"}, 7)):
        before = extractors.dino.num_seen
        masks = masks_from_segmenter(segmenter, nouns, tmp_path / "masks")
        score_subjects(tmp_path / "run", plan, references, extractors, masks=masks)
        plain = 21 if not before else 0
        assert extractors.dino.num_seen - before == seen + plain


def test_where_nothing_is_marked_the_whole_image_counts_and_is_counted(tmp_path):
    blind = ClipSegmenter(find_segmenter(str(write_clipseg(tmp_path / "blind", bias=-1000.0))))
    plan, references = build_run(tmp_path)
    scores = score(tmp_path, plan, references, blind)
    (note,) = [one for one in scores.notes if "marked nothing" in one]
    assert "12 of 12 images and 9 of 9 photos" in note and "cat/00_0.png" in note
    for reference in ("input", "all", "others"):
        assert scores.find(f"dino_masked_{reference}").value == scores.find(f"dino_{reference}").value
    assert note in (tmp_path / "run" / "scores.md").read_text()


def test_runs_with_other_masks_are_not_compared(tmp_path, segmenter):
    plan, references = build_run(tmp_path)
    other = ClipSegmenter(find_segmenter(str(write_clipseg(tmp_path / "other", seed=1))))
    one, two = (score(tmp_path, plan, references, by, out) for by, out in ((segmenter, "a"), (other, "b")))
    bare = score_subjects(
        tmp_path / "run", plan, references, Extractors(Colours("dino"), Colours("clip")), out=tmp_path / "c"
    )
    first = ScoredRun(name="a", folder=tmp_path, scores=one)
    with pytest.raises(UsageError, match=r"scoring\.masks\.weights_sha256"):
        check_comparable(first, ScoredRun(name="b", folder=tmp_path, scores=two))
    with pytest.raises(UsageError, match=r"scoring\.masks.* against absent"):
        check_comparable(first, ScoredRun(name="c", folder=tmp_path, scores=bare))
    check_comparable(first, ScoredRun(name="d", folder=tmp_path, scores=Scores.read(tmp_path / "a")))


def test_each_subject_of_an_image_is_sought_by_its_own_noun(tmp_path):
    plan = multi_plan(open_dreambench(write_dreambench(tmp_path / "dataset")), DreamBenchOptions(num_images=1), {})
    nouns = {item.subject: item.class_noun for item in each_subject(plan).items}
    assert nouns == {name: noun for name, (noun, _) in REAL_SUBJECTS.items()}


def test_a_segmenter_that_cannot_be_had_offline_is_named(monkeypatch):
    with pytest.raises(MissingError) as failure:
        find_segmenter("default", offline=True)
    message = str(failure.value)
    assert REPOSITORY in message and f"https://huggingface.co/{REPOSITORY}" in message and "\n" not in message
    assert "--segmenter FOLDER" in message and "nothing is downloaded offline" in message
    with pytest.raises(MissingError, match="no segmenter folder nowhere"):
        find_segmenter("nowhere")


def test_the_default_is_found_in_the_hubs_cache(tmp_path, folder, monkeypatch):
    repository = tmp_path / f"models--{REPOSITORY.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = find_segmenter("default", offline=True)
    assert found.path.is_relative_to(repository) and found.sha256 == hash_of(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("merges.txt", "no tokenizer.json or vocab.json with merges.txt"),
        ("preprocessor_config.json", "no preprocessor_config.json or processor_config.json"),
        ("model.safetensors", "no model.safetensors or pytorch_model.bin"),
        ("config.json", "no config.json"),
    ],
)
def test_a_file_that_is_not_there_is_named(tmp_path, folder, gone, words):
    shutil.copytree(folder, tmp_path / "part")
    (tmp_path / "part" / gone).unlink()
    with pytest.raises(MissingError, match=words):
        find_segmenter(str(tmp_path / "part"))


def test_another_model_is_refused(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))
    with pytest.raises(IncompatibleError, match="of type clip; it must be clipseg"):
        find_segmenter(str(tmp_path / "other"))


def test_weights_that_are_not_whole_are_refused(tmp_path, folder):
    """The library itself would fill in random ones."""
    shutil.copytree(folder, tmp_path / "part")
    weights = load_file(folder / "model.safetensors")
    part = {name: weight for name, weight in weights.items() if not name.startswith("decoder.")}
    save_file(part, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IncompatibleError, match="not a complete CLIPSeg"):
        ClipSegmenter(find_segmenter(str(tmp_path / "part")))
    (tmp_path / "part" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(IncompatibleError, match="cannot be used"):
        ClipSegmenter(find_segmenter(str(tmp_path / "part")))


def test_a_pickle_of_weights_alone_is_read(tmp_path, folder, segmenter):
    shutil.copytree(folder, tmp_path / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pickled" / "pytorch_model.bin")
    pickled = ClipSegmenter(find_segmenter(str(tmp_path / "pickled")))
    assert pickled.mask(make_image(), "dog").tobytes() == segmenter.mask(make_image(), "dog").tobytes()


def test_the_commands_answers_to_what_cannot_be(kg, tmp_path, folder, monkeypatch):
    monkeypatch.setenv("KG_WEIGHTS", str(tmp_path / "none"))
    data = write_dreambench(tmp_path / "dataset")
    options = ["eval", "dreambench", "--data", data, "--method", "copy-input", "-o", "run", "--offline"]
    both = kg(*options, "--masks", data, "--segmenter", folder)
    assert both.code == 2 and "--masks and --segmenter" in both.err.splitlines()[0] and both.err.count("\n") == 2
    absent = kg(*options, "--segmenter", "default")
    assert absent.code == 3 and REPOSITORY in absent.err and absent.err.count("\n") == 1
    nano = kg(*options, "--suite", "nano", "--segmenter", folder)
    assert nano.code == 2 and "--segmenter" in nano.err and "nano-dreambench" in nano.err
    assert not (tmp_path / "run").exists()


def test_a_segmenter_is_found_before_weights_are_fetched(folder, tmp_path, monkeypatch):
    for name in ("dino", "clip"):
        monkeypatch.setitem(TABLE, name, dataclasses.replace(TABLE[name], sha256=""))
        (tmp_path / TABLE[name].file).write_bytes(b"any")
    ready = find_resources("dreambench", None, Scoring(weights=tmp_path, segmenter=str(folder), offline=True))
    assert ready.segmenter is not None and ready.segmenter.path == folder / "model.safetensors"


@pytest.mark.slow
def test_the_command_scores_a_run_without_backgrounds_and_by_dinov2(kg, tmp_path, folder, monkeypatch):
    """Networks of the true architectures, with weights that know nothing; the segmenter is the small one."""
    import open_clip
    import timm

    torch.manual_seed(0)
    weights = tmp_path / "weights"
    weights.mkdir()
    monkeypatch.setitem(TABLE, "clip", dataclasses.replace(TABLE["clip"], sha256=""))
    for name, architecture in (("dino", "vit_small_patch16_224.dino"), ("dinov2", "vit_small_patch14_dinov2.lvd142m")):
        network = timm.create_model(architecture, pretrained=False, num_classes=0)
        torch.save(network.state_dict(), weights / TABLE[name].file)
    torch.save(open_clip.create_model("ViT-B-32-quickgelu").state_dict(), weights / TABLE["clip"].file)
    data = write_dreambench(tmp_path / "dataset")
    options = ["--weights", weights, "--offline", "--device", "cpu", "-q"]
    generate = ["--data", data, "--method", "copy-input", "--subjects", "dog", "-n", 1, *options]
    further = ["--segmenter", folder, "--also", "dinov2"]
    assert kg("eval", "dreambench", *generate, *further, "-o", "run").code == 0
    scores = Scores.read(tmp_path / "run")
    assert scores.find("dinov2_input").value == pytest.approx(1, abs=1e-5)
    assert scores.find("dino_masked_input").value == pytest.approx(1, abs=1e-5)
    assert scores.protocol["scoring"]["masks"]["weights_sha256"] == hash_of(folder / "model.safetensors")
    assert all("-dog-" in one.name for one in (tmp_path / "run" / "masks").iterdir())
    whole = (tmp_path / "run" / "scores.json").read_bytes()
    again = ["eval", "dreambench", "-o", "run", "--only", "score", "--data", data, *options]
    assert kg(*again, *further).code == 0 and (tmp_path / "run" / "scores.json").read_bytes() == whole
    shutil.copytree(tmp_path / "run", tmp_path / "bare")
    assert kg("eval", "dreambench", "-o", "bare", "--only", "score", "--data", data, *options).code == 0
    refused = kg("eval", "compare", "run", "bare")
    assert refused.code == 2 and "scoring.dinov2" in refused.err and refused.err.count("\n") == 1
