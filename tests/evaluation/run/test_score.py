import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from random_inception import write_random_inception
from subject_run import SUBJECTS, Colours, build_run, draw

from kgcli.errors import MissingError, UsageError
from kgcli.evaluation.extractors.base import Extractors
from kgcli.evaluation.extractors.dino import DINO, DinoExtractor
from kgcli.evaluation.extractors.inception import NETWORKS, PRESETS, InceptionExtractor
from kgcli.evaluation.extractors.published import ClipExtractor
from kgcli.evaluation.metrics.distribution import DistributionExtractor
from kgcli.evaluation.metrics.frechet import Moments, Reference
from kgcli.evaluation.metrics.subjects import SubjectPhotos
from kgcli.evaluation.report.compare import ScoredRun, check_comparable
from kgcli.evaluation.run.masks import masks_from_files, masks_from_segmenter, on_white
from kgcli.evaluation.run.score import RealImages, score_distribution, score_subjects
from kgcli.evaluation.scores import Scores


@pytest.fixture
def extractors() -> Extractors:
    return Extractors(Colours("dino"), Colours("clip"))


def cosine(a, b):
    a, b = (np.asarray(Colours("x").images([one])[0], float) for one in (a, b))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_numbers_are_the_cosines_of_their_definitions(tmp_path, extractors):
    plan, references = build_run(tmp_path)
    scores = score_subjects(tmp_path / "run", plan, references, extractors)
    one = scores.pictures[0]
    generated = Image.open(tmp_path / "run" / one.path)
    photos = [cosine(generated, Image.open(tmp_path / "data" / name)) for name in references["cat"].photos]
    assert one.values["dino_input"] == pytest.approx(photos[1], abs=1e-6)
    assert one.values["dino_all"] == pytest.approx(np.mean(photos), abs=1e-6)
    assert one.values["dino_others"] == pytest.approx((photos[0] + photos[2]) / 2, abs=1e-6)
    assert one.values["clip_t"] == pytest.approx(cosine(generated, Image.new("RGB", (4, 4), "orange")), abs=1e-6)
    of_subjects = [scores.find("dino_input", group=f"subject:{name}").value for name in SUBJECTS]
    assert scores.find("dino_input").value == pytest.approx(np.mean(of_subjects))
    assert scores.find("dino_input").num_subjects == 3 and scores.find("dino_input").num_pictures == 12
    assert scores.find("clip_t", group="category:live").num_subjects == 2
    assert scores.find("clip_t", group="kind:accessory").num_pictures == 6
    assert scores.find("dino_input").low < scores.find("dino_input").value < scores.find("dino_input").high


def test_an_image_of_two_subjects_is_seen_once_and_counted_once(tmp_path, extractors):
    plan, references = build_run(tmp_path)
    dog = next(item for item in plan.items if item.subject == "dog")
    shared = [replace(dog, path=item.path) for item in plan.items if item.subject == "cat"]
    scores = score_subjects(tmp_path / "run", replace(plan, items=(*plan.items, *shared)), references, extractors)
    assert scores.protocol["num_pictures"] == 12 and len(scores.pictures) == 16
    assert extractors.dino.num_seen == 12 + 9  # with the photos
    assert scores.find("dino_input", group="subject:dog").num_pictures == 8


def test_a_method_that_copies_scores_as_the_copy_row_and_is_found_out(tmp_path, extractors):
    plan, references = build_run(tmp_path, copying=True)
    scores = score_subjects(tmp_path / "run", plan, references, extractors)
    assert scores.find("dino_input").value == pytest.approx(1.0)
    assert scores.find("copied").value == scores.find("copied", "copy-input").value == 1.0
    for measure in ("dino_input", "dino_all", "dino_others", "clip_i_all", "clip_t"):
        copied = scores.find(measure, "copy-input").value
        assert scores.find(measure).value == pytest.approx(copied, abs=1e-12)


def test_the_oracle_compares_no_photo_with_itself(tmp_path, extractors):
    plan, references = build_run(tmp_path)
    scores = score_subjects(tmp_path / "run", plan, references, extractors)
    photos = [Image.open(tmp_path / "data" / name) for name in references["can"].photos]
    pairs = [cosine(photos[i], photos[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert scores.find("dino_all", "oracle", "subject:can").value == pytest.approx(np.mean(pairs), abs=1e-6)
    expected = (pairs[0] + pairs[2]) / 2
    assert scores.find("dino_input", "oracle", "subject:can").value == pytest.approx(expected, abs=1e-6)
    assert scores.find("dino_all", "oracle").num_pictures == 9
    with pytest.raises(KeyError):
        scores.find("clip_t", "oracle")


def test_scoring_that_was_killed_goes_on_and_leaves_the_same_bytes(tmp_path, extractors):
    plan, references = build_run(tmp_path)
    run = tmp_path / "run"
    score_subjects(run, plan, references, extractors, out=tmp_path / "whole")

    class Dying(Colours):
        def images(self, images):
            if images[0].width > 4:  # texts pass, images do not
                raise KeyboardInterrupt
            return super().images(images)

    with pytest.raises(KeyboardInterrupt):
        score_subjects(run, plan, references, Extractors(extractors.dino, Dying("clip")), out=tmp_path / "killed")
    assert not (tmp_path / "killed" / "scores.json").exists()
    damaged = next((tmp_path / "killed" / "features").glob("dino-*.npy"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    again = Extractors(Colours("dino"), Colours("clip"))
    score_subjects(run, plan, references, again, out=tmp_path / "killed")
    assert 0 < again.dino.num_seen < 12 + 9  # the block that was whole is not looked at again
    for name in ("scores.json", "scores.csv", "pictures.csv", "scores.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_image_that_changed_is_looked_at_again(tmp_path, extractors):
    plan, references = build_run(tmp_path)
    before = score_subjects(tmp_path / "run", plan, references, extractors)
    draw("green", 7).save(tmp_path / "run" / plan.items[0].path)
    after = score_subjects(tmp_path / "run", plan, references, extractors)
    assert after.pictures[0].values != before.pictures[0].values
    assert after.pictures[1:] == before.pictures[1:]


def test_a_run_that_is_not_whole_is_not_scored(tmp_path, extractors):
    plan, references = build_run(tmp_path)
    (tmp_path / "run" / plan.items[3].path).unlink()
    with pytest.raises(MissingError, match="1 of 12 images"):
        score_subjects(tmp_path / "run", plan, references, extractors)
    assert extractors.dino.num_seen == 0


def test_references_that_do_not_fit_are_refused(tmp_path, extractors):
    plan, references = build_run(tmp_path)
    with pytest.raises(UsageError, match="the subject can has no real photos"):
        score_subjects(tmp_path / "run", plan, {k: references[k] for k in ("cat", "dog")}, extractors)
    wrong = {**references, "can": replace(references["can"], input="can/9.png")}
    with pytest.raises(UsageError, match="not one of the subject's photos"):
        score_subjects(tmp_path / "run", plan, wrong, extractors)


def test_one_photo_leaves_no_others(tmp_path, extractors):
    plan, references = build_run(tmp_path)
    alone = {name: SubjectPhotos((one.input,), one.input) for name, one in references.items()}
    scores = score_subjects(tmp_path / "run", plan, alone, extractors)
    assert "dino_others" not in scores.pictures[0].values
    assert any("subject(s) with one photo are excluded" in note for note in scores.notes)


def test_masks_take_the_background_away(tmp_path, extractors):
    plan, references = build_run(tmp_path)
    for folder in (tmp_path / "run" / "images", tmp_path / "data"):
        for file in folder.rglob("*.png"):
            mask = tmp_path / "masks" / file.relative_to(tmp_path)
            mask.parent.mkdir(parents=True, exist_ok=True)
            _dark(Image.open(file)).save(mask)
    roots = {tmp_path / name: tmp_path / "masks" / name for name in ("run", "data")}
    files = dict.fromkeys(SUBJECTS, masks_from_files(roots))
    made = masks_from_segmenter(Dark(), {name: name for name in SUBJECTS}, tmp_path / "made")
    from_files = score_subjects(tmp_path / "run", plan, references, extractors, masks=files, out=tmp_path / "a")
    segmented = score_subjects(tmp_path / "run", plan, references, extractors, masks=made, out=tmp_path / "b")
    value = from_files.find("dino_masked_input").value
    assert value == segmented.find("dino_masked_input").value > from_files.find("dino_input").value
    with pytest.raises(UsageError, match="empty"):
        on_white(Image.new("RGB", (4, 4)), Image.new("L", (4, 4)), "x")
    with pytest.raises(UsageError, match="different protocols"):
        check_comparable(*(ScoredRun(name="a", folder=tmp_path, scores=scores) for scores in (from_files, segmented)))


class Dark:
    """A segmenter: whatever is not light."""

    def facts(self):
        return {"segmenter": "dark"}

    def mask(self, image, noun):
        assert noun in SUBJECTS
        return _dark(image)


def _dark(image):
    return Image.fromarray((np.asarray(image.convert("RGB")).min(axis=2) < 180).astype(np.uint8) * 255)


def test_tables_say_what_the_scores_say(tmp_path, extractors):
    plan, references = build_run(tmp_path)
    scores = score_subjects(tmp_path / "run", plan, references, extractors)
    assert Scores.read(tmp_path / "run").to_json() == scores.to_json()
    with (tmp_path / "run" / "scores.csv").open() as file:
        lines = {(one["measure"], one["row"], one["group"]): float(one["value"]) for one in csv.DictReader(file)}
    assert lines["dino_all", "oracle", "all"] == scores.find("dino_all", "oracle").value
    with (tmp_path / "run" / "pictures.csv").open() as file:
        assert float(list(csv.DictReader(file))[5]["clip_t"]) == scores.pictures[5].values["clip_t"]
    text = (tmp_path / "run" / "scores.md").read_text()
    assert f"| cat | {scores.find('dino_input', group='subject:cat').value:.3f} |" in text
    assert "| copy-input | oracle |" in text and "+- " in text


def test_scores_hold_no_paths_of_this_machine_but_the_plans_own(tmp_path, extractors):
    plan, references = build_run(tmp_path)
    moved = replace(plan, data="photos")
    scores = score_subjects(tmp_path / "run", moved, references, extractors, data=tmp_path / "data")
    assert str(tmp_path) not in scores.to_json()
    json.loads(scores.to_json())


def test_a_distribution_is_scored_by_every_preset(tmp_path):
    plan, _ = build_run(tmp_path, images=5)
    reals = [tmp_path / "real" / f"{number}.png" for number in range(80)]
    reals[0].parent.mkdir()
    for number, file in enumerate(reals):
        draw(("orange", "blue")[number % 2], number).save(file)
    clip, colours = Colours("clip"), Colours("colours")
    real = RealImages(files=reals, cache=tmp_path / "cache", num_reference=30)
    presets = [DistributionExtractor("nano", colours, colours)]
    scores = score_distribution(tmp_path / "run", plan, real, presets, clip=clip, with_cmmd=True)
    features = [
        Colours("x").images([Image.open(file) for file in files])
        for files in (reals, [tmp_path / "run" / one.path for one in plan.items])
    ]
    expected = Reference(Moments.of(features[0])).distance(Moments.of(features[1]))
    assert scores.find("fid_nano").value == pytest.approx(expected, rel=1e-6)
    assert {one.measure for one in scores.figures} == {"fid_nano", "kid_nano", "kid_sd_nano", "clip_t", "cmmd"}
    assert all(np.isfinite(one.value) for one in scores.figures)
    assert not any(one.group.startswith("subject:") for one in scores.figures)
    assert scores.protocol["scoring"]["measures"]["kid"]["subset_size"] == 1000
    assert scores.find("cmmd").value > 0 and 0 < scores.find("clip_t").value < 1
    assert scores.find("clip_t").low is not None and len(scores.notes) == 2

    seen = colours.num_seen
    again = score_distribution(tmp_path / "run", plan, real, presets, clip=clip, with_cmmd=True)
    assert again == scores and colours.num_seen == seen  # all from the caches
    assert {one.suffix for one in (tmp_path / "cache").iterdir()} == {".npz"}
    short = score_distribution(tmp_path / "run", plan, replace(real, num_reference=30_000), presets)
    assert any("uses 30 images instead of the suite's 30000" in note for note in short.notes)


def test_a_set_of_one_is_no_distribution(tmp_path):
    plan, _ = build_run(tmp_path)
    colours = Colours("colours")
    real = RealImages(files=[tmp_path / "data" / "cat" / "0.png"], cache=tmp_path / "cache")
    with pytest.raises(UsageError, match="1 real images"):
        score_distribution(tmp_path / "run", plan, real, [DistributionExtractor("nano", colours, colours)])


@pytest.mark.slow
def test_the_full_size_networks_score_a_run(tmp_path):
    """DINO, CLIP and Inception of the true architectures, weights that know nothing: all presets, resumed, equal."""
    plan, references = build_run(tmp_path, images=1)
    extractors = Extractors(DinoExtractor.random_weights(DINO), ClipExtractor.random_weights())
    scores = score_subjects(tmp_path / "run", plan, references, extractors, out=tmp_path / "subjects")
    assert scores.find("dino_input", "copy-input").value == pytest.approx(1)
    assert 0 < scores.find("dino_all").value < 1 and len(scores.notes) == 2
    files = write_random_inception(tmp_path)
    networks = {name: NETWORKS[name](weights, "cpu") for name, weights in files.items()}
    presets = [
        DistributionExtractor(
            name,
            InceptionExtractor(networks[one.weights], one.real),
            InceptionExtractor(networks[one.weights], one.fake),
        )
        for name, one in PRESETS.items()
    ]
    real = RealImages(files=sorted((tmp_path / "data").rglob("*.png")), cache=tmp_path / "cache")
    found = score_distribution(tmp_path / "run", plan, real, presets)
    values = {name: found.find(f"fid_{name}").value for name in PRESETS}
    assert len(set(values.values())) == 4 and all(np.isfinite(list(values.values())))
    assert score_distribution(tmp_path / "run", plan, real, presets) == found
