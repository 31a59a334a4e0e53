"""DINOv2: pixels, positions and networks as the official code has them; scores of subjects and of sets with it."""

import dataclasses

import numpy as np
import pytest
import timm
import torch
from benchmark_data import write_dreambench
from PIL import Image
from pixels import by_hand, make_image
from subject_run import Colours, build_run
from transformers import Dinov2Config, Dinov2Model

from kgcli.errors import IncompatibleError, MissingError, UsageError
from kgcli.evaluation.extractors.base import Extractors
from kgcli.evaluation.extractors.dino import DISTANCE, SIMILARITY, DinoExtractor, resize_positions, square_transform
from kgcli.evaluation.extractors.weight_files import TABLE, Weights
from kgcli.evaluation.metrics.distribution import DistributionExtractor
from kgcli.evaluation.metrics.frechet import Moments, Reference
from kgcli.evaluation.report.compare import ScoredRun, check_comparable
from kgcli.evaluation.run.score import RealImages, score_distribution, score_subjects
from kgcli.evaluation.run.scoring import Scoring, find_resources

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def published():
    """Weights in the layout of the official file of ViT-S/14, all of them at random and all of them felt."""
    generator = torch.Generator().manual_seed(0)
    bare = timm.create_model(SIMILARITY.architecture, pretrained=False, num_classes=0)
    state = {
        name: torch.randn(weight.shape, generator=generator) * 0.05 + (0.5 if "gamma" in name else 0)
        for name, weight in bare.state_dict().items()
    }
    return {**state, "mask_token": torch.zeros(1, 384)}


@pytest.fixture(scope="module")
def extractor(published, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / TABLE["dinov2"].file
    torch.save(published, path)
    return DinoExtractor(SIMILARITY, Weights(path, "abc"))


@pytest.mark.parametrize("size", [(512, 512), (300, 210), (128, 200)])
def test_pixels_are_pillows_bit_for_bit(size):
    of_subjects, of_sets = SIMILARITY.transform(), DISTANCE.transform()
    assert np.array_equal(of_subjects(make_image(size)).numpy(), by_hand(make_image(size), 256, *IMAGENET))
    squashed = make_image(size).resize((224, 224), Image.Resampling.BICUBIC)
    assert np.array_equal(of_sets(make_image(size)).numpy(), by_hand(squashed, 224, *IMAGENET))


def test_the_square_transform_is_the_published_one():
    """dgm-eval's: torchvision's Resize of both sides on the image, ToTensor, Normalize with its arrays."""
    from torchvision.transforms import v2

    tensor = v2.functional.pil_to_tensor(make_image().resize((224, 224), Image.Resampling.BICUBIC)).float().div(255)
    expected = v2.functional.normalize(tensor, *(list(values) for values in IMAGENET))
    assert torch.equal(square_transform()(make_image()), expected)


def cubic(distance, a=-0.75):
    distance = abs(distance)
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4) if distance < 2 else 0.0


def test_positions_are_resized_as_the_official_code_does():
    """By hand: a bicubic without antialias whose step is 37 / 16.1, the official offset of 0.1 included."""
    positions = torch.randn(1, 1 + 37 * 37, 3, generator=torch.Generator().manual_seed(0))
    weights = np.zeros((16, 37))
    for place in range(16):
        centre = (place + 0.5) * 37 / 16.1 - 0.5
        for source in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[place, min(max(source, 0), 36)] += cubic(centre - source)
    grid = positions[0, 1:].double().numpy().reshape(37, 37, 3)
    expected = np.einsum("ai,bj,ijd->abd", weights, weights, grid).reshape(256, 3)
    found = resize_positions(positions)
    assert found.shape == (1, 257, 3) and torch.equal(found[:, 0], positions[:, 0])
    assert np.allclose(found[0, 1:].numpy(), expected, atol=1e-5)
    assert torch.equal(resize_positions(found), found)
    timms = timm.layers.resample_abs_pos_embed(positions, [16, 16])
    assert (found - timms).abs().max() > 0.1  # why it is not left to timm


def test_the_official_file_gives_the_rows_of_another_implementation(extractor, published):
    """transformers' DINOv2 with the same weights."""
    cfg = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=224, patch_size=14, layer_norm_eps=1e-6
    )
    other = Dinov2Model(cfg).eval()
    other.load_state_dict(_by_transformers_names({**published, "pos_embed": resize_positions(published["pos_embed"])}))
    with torch.inference_mode():
        token = other(SIMILARITY.transform()(make_image())[None]).last_hidden_state[0, 0]
    row = extractor.images([make_image()])[0]
    assert row.shape == (384,) and row.dtype == np.float32
    assert np.allclose(row, torch.nn.functional.normalize(token, dim=0).numpy(), atol=2e-5)
    assert np.abs(row - extractor.images([make_image(seed=1)])[0]).max() > 1e-3


def _by_transformers_names(state):
    names = {
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "attn.proj": "attention.o_proj",
        "blocks": "encoder.layer",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    found = {}
    for name, weight in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        name = name.replace("norm.", "layernorm.") if name.startswith("norm.") else name
        if "attn.qkv" in name:
            for part, rows in zip("qkv", weight.chunk(3), strict=True):
                found[name.replace("attn.qkv", f"attention.{part}_proj")] = rows
        else:
            found[name] = weight
    return found


def test_a_row_does_not_depend_on_its_neighbours(extractor):
    among = extractor.images([make_image(seed=0), make_image(seed=1)])[1]
    assert np.array_equal(extractor.images([make_image(seed=1)])[0], among)


def test_features_of_sets_are_as_the_network_gives_them():
    """Not of length 1, from the square of the whole image; the small network in place of the large."""
    small = DinoExtractor.random_weights(dataclasses.replace(DISTANCE, architecture=SIMILARITY.architecture))
    row = small.images([make_image()])[0]
    with torch.inference_mode():
        token = small._model.forward_features(square_transform()(make_image())[None])[0, 0]
    assert np.abs(row - token.numpy()).max() < 1e-6 and abs(np.linalg.norm(row) - 1) > 1
    assert small.facts()["transform"] == "PIL bicubic 224 x 224, ImageNet mean and std"


def test_facts_name_network_transform_and_weights(extractor):
    facts = extractor.facts()
    assert facts["weights_sha256"] == "abc" and "vit_small_patch14_dinov2" in facts["architecture"]
    assert "centre 224" in facts["transform"]
    random = DinoExtractor.random_weights(SIMILARITY, 3)
    assert random.facts() == {**facts, "weights_sha256": "random-3"}


def test_other_files_are_refused(published, tmp_path):
    path = tmp_path / "file.pth"
    for state in ({**published, "register_tokens": torch.zeros(1, 4, 384)}, {"head": torch.zeros(2)}, [1]):
        torch.save(state, path)
        with pytest.raises(IncompatibleError, match="does not hold vit_small_patch14_dinov2"):
            DinoExtractor(SIMILARITY, Weights(path, ""))
    path.write_text("hello")
    with pytest.raises(IncompatibleError, match="does not hold vit_small_patch14_dinov2"):
        DinoExtractor(SIMILARITY, Weights(path, ""))


def test_the_addresses_are_timms():
    for use in (SIMILARITY, DISTANCE):
        assert TABLE[use.name].url == timm.get_pretrained_cfg(use.architecture).url


def test_subjects_have_three_more_measures_and_another_protocol(tmp_path, extractor):
    plan, references = build_run(tmp_path, images=1)
    bare = Extractors(Colours("dino"), Colours("clip"))
    scores = score_subjects(
        tmp_path / "run", plan, references, dataclasses.replace(bare, dinov2=extractor), out=tmp_path / "a"
    )
    first = scores.pictures[0]
    files = [tmp_path / "run" / first.path, *(tmp_path / "data" / photo for photo in references["cat"].photos)]
    rows = extractor.images([Image.open(file) for file in files]).astype(np.float64)
    cosines = rows[1:] @ rows[0]
    assert first.values["dinov2_input"] == pytest.approx(cosines[1], abs=1e-6)
    assert first.values["dinov2_all"] == pytest.approx(cosines.mean(), abs=1e-6)
    assert first.values["dinov2_others"] == pytest.approx((cosines[0] + cosines[2]) / 2, abs=1e-6)
    assert scores.find("dinov2_input", "copy-input").value == pytest.approx(1)
    assert scores.find("dinov2_all", "oracle").num_pictures == 9
    without = score_subjects(tmp_path / "run", plan, references, bare, out=tmp_path / "b")
    assert "dinov2_input" not in without.pictures[0].values
    one, two = (ScoredRun(name=name, folder=tmp_path, scores=of) for name, of in (("a", scores), ("b", without)))
    with pytest.raises(UsageError, match=r"scoring\.dinov2\.\w+ .* against absent"):
        check_comparable(one, two)


def test_sets_have_a_frechet_distance_of_raw_features(tmp_path):
    """The distance is of vectors as they are; here of colours, five times as long as in the other measure."""

    class Raw(Colours):
        def images(self, images):
            return super().images(images) * 5

    plan, _ = build_run(tmp_path, images=5)
    real = RealImages(files=sorted((tmp_path / "data").rglob("*.png")), cache=tmp_path / "cache")
    unit, raw = Colours("colours"), Raw("dinov2-large")
    presets = [
        DistributionExtractor("kosmosg", unit, unit),
        DistributionExtractor("dinov2", raw, raw, frechet="FD", kernel="KD"),
    ]
    scores = score_distribution(tmp_path / "run", plan, real, presets)
    assert scores.find("fd_dinov2").value == pytest.approx(25 * scores.find("fid_kosmosg").value, rel=1e-4)
    assert {"fd_dinov2", "kd_dinov2", "kd_sd_dinov2"} <= {figure.measure for figure in scores.figures}
    titles = {one.name: (one.title, one.higher_is_better, one.primary) for one in scores.measures}
    assert titles["fd_dinov2"] == ("FD (dinov2)", False, False) and titles["fid_kosmosg"] == (
        "FID (kosmosg)",
        False,
        True,
    )
    seen = raw.num_seen
    assert score_distribution(tmp_path / "run", plan, real, presets) == scores and raw.num_seen == seen
    alone = score_distribution(tmp_path / "run", plan, real, presets[:1], out=tmp_path / "alone")
    one, two = (ScoredRun(name=name, folder=tmp_path, scores=of) for name, of in (("a", scores), ("b", alone)))
    with pytest.raises(UsageError, match=r"scoring\.dinov2\.fake.* against absent"):
        check_comparable(one, two)


def test_further_scores_are_chosen_by_name(kg, tmp_path, monkeypatch):
    monkeypatch.setenv("KG_WEIGHTS", str(tmp_path / "none"))
    data = write_dreambench(tmp_path / "dataset")
    options = ["--method", "copy-input", "-o", "run", "--offline"]
    absent = kg("eval", "dreambench", "--data", data, *options, "--also", "dinov2")
    assert absent.code == 3 and absent.err.count("\n") == 1 and str(tmp_path / "none") in absent.err
    assert TABLE["dinov2"].file in absent.err and TABLE["dinov2"].url in absent.err
    for command, suite, name, words in (
        ("dreambench", "single", "dreamsim", "--also is dreamsim; for dreambench it must be one of dinov2"),
        ("dreambench", "nano", "dinov2", "the suite has no optional scores"),
        ("coco", "full", "dinov2", "it must be one of clip-score, cmmd, fd-dinov2"),
    ):
        wrong = kg("eval", command, "--suite", suite, "--data", data, *options, "--also", name)
        assert wrong.code == 2 and words in wrong.err and wrong.err.splitlines()[0].startswith("error: --also")
    assert not (tmp_path / "run").exists()


def test_what_further_scores_of_sets_take_is_found_first(tmp_path, monkeypatch):
    monkeypatch.setenv("KG_WEIGHTS", str(tmp_path / "none"))
    build_run(tmp_path)
    asked = {"real": tmp_path / "data" / "cat", "offline": True}
    with pytest.raises(MissingError) as failure:
        find_resources("coco", None, Scoring(**asked, also=("fd-dinov2", "cmmd")))
    message = str(failure.value)
    assert all(TABLE[name].url in message for name in ("dinov2-large", "clip", "inception"))
    assert TABLE["dinov2"].file not in message
    with pytest.raises(MissingError) as failure:
        find_resources("coco", None, Scoring(**asked))
    assert TABLE["clip"].file not in str(failure.value)


@pytest.mark.slow
def test_the_full_size_network_measures_sets(tmp_path):
    """ViT-L/14, weights that know nothing: features of 1024, as they are."""
    large = DinoExtractor.random_weights(DISTANCE)
    plan, _ = build_run(tmp_path, images=1)
    real = RealImages(files=sorted((tmp_path / "data").rglob("*.png")), cache=tmp_path / "cache")
    preset = DistributionExtractor("dinov2", large, large, frechet="FD", kernel="KD")
    scores = score_distribution(tmp_path / "run", plan, real, [preset])
    sets = [large.images([Image.open(file) for file in files]) for files in (real.files, _images(tmp_path, plan))]
    assert sets[0].shape == (9, 1024) and np.abs(np.linalg.norm(sets[0], axis=1) - 1).min() > 1
    expected = Reference(Moments.of(sets[0])).distance(Moments.of(sets[1]))
    assert scores.find("fd_dinov2").value == pytest.approx(expected, rel=1e-6) and expected > 0
    assert any("random" in note for note in scores.notes)


def _images(root, plan):
    return [root / "run" / item.path for item in plan.items]
