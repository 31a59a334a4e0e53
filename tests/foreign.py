"""Tiny data sets in foreign layouts, written as the programs of others write them."""

import base64
import csv
import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image


def image_bytes(number, side=16, suffix="jpg"):
    """An image that no other number gives."""
    pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
    image.save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix])
    return buffer.getvalue()


def base64_image(number, side=16):
    return base64.b64encode(image_bytes(number, side, "png")).decode()


def write_tsv(path, lines):
    path.write_text("".join("\t".join(map(str, cells)) + "\n" for cells in lines), "utf-8")


def write_instructpix2pix(folder):
    entries = []
    for name, seeds in (("shard-00/0000000", ["11", "12"]), ("shard-00/0000001", ["7"])):
        (folder / name).mkdir(parents=True)
        told = {"input": f"a photo {name[-1]}", "edit": "make it snow", "output": "snow"}
        (folder / name / "prompt.json").write_text(json.dumps(told))
        for seed in seeds:
            for side in (0, 1):
                (folder / name / f"{seed}_{side}.jpg").write_bytes(image_bytes(int(seed) * 2 + side))
        entries.append([name, seeds])
    (folder / "seeds.json").write_text(json.dumps(entries))
    return entries


def write_coco(folder):
    (folder / "train2017").mkdir(parents=True)
    images = [{"id": number, "file_name": f"{number:012d}.jpg", "width": 16, "height": 16} for number in (9, 25, 30)]
    for image in images[:2]:
        (folder / "train2017" / image["file_name"]).write_bytes(image_bytes(image["id"]))
    told = [(9, "A cat. "), (25, "A dog."), (9, "The cat."), (30, "A bird whose image is missing.")]
    annotations = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(told)]
    (folder / "captions.json").write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))


def write_open_images(folder):
    (folder / "images").mkdir(parents=True)
    rows = [("000a1249af2bc5f0", "0.0"), ("000b7d55b6184b08", "90.0"), ("../../etc/passwd", "")]
    with (folder / "train-images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageID", "Subset", "OriginalURL", "Rotation"])
        for name, rotation in rows:
            writer.writerow([name, "train", "https://example.org/x.jpg", rotation])
    image = Image.new("RGB", (32, 16), "red")
    for name, _ in rows[:2]:
        image.save(folder / "images" / f"{name}.jpg")
    told = {"dataset_id": "open_images", "image_id": rows[0][0], "annotator_id": 1, "caption": "Red.", "traces": []}
    (folder / "narratives.jsonl").write_text(json.dumps(told) + "\n")
    return [name for name, _ in rows]


def add_member(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_img2dataset(folder, num_shards=2, per_shard=3):
    """As img2dataset --output_format webdataset writes it, each shard's last image not downloaded."""
    folder.mkdir(parents=True)
    for shard in range(num_shards):
        rows = []
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for place in range(per_shard):
                key, number = f"{shard:05d}{place:04d}", shard * per_shard + place
                failed = place == per_shard - 1
                told = {
                    "url": f"https://example.org/{number}.jpg",
                    "caption": f"caption {number}",
                    "key": key,
                    "status": "failed_to_download" if failed else "success",
                    "error_message": "HTTP Error 404: Not Found" if failed else None,
                }
                rows.append(told)
                if not failed:
                    add_member(tar, f"{key}.jpg", image_bytes(number))
                    add_member(tar, f"{key}.txt", told["caption"].encode())
                add_member(tar, f"{key}.json", json.dumps(told).encode())
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": per_shard}))


def write_mmc4(folder):
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "aa.jpg").write_bytes(image_bytes(1))
    (folder / "images" / "bb.png").write_bytes(image_bytes(2, suffix="png"))
    documents = [
        {
            "url": "https://example.org",
            "text_list": ["A cat.", "It sleeps.", "The end."],
            "image_info": [
                {"image_name": "bb.png", "raw_url": "https://x", "matched_text_index": 1, "matched_sim": 0.3},
                {"image_name": "aa.jpg", "raw_url": "https://x", "matched_text_index": 0, "matched_sim": 0.3},
                {"image_name": "gone.jpg", "raw_url": "https://x", "matched_text_index": 2, "matched_sim": 0.3},
            ],
            "similarity_matrix": [[0.1, 0.2, 0.3]],
        },
        {"url": "https://example.org/2", "text_list": ["No image."], "image_info": []},
        {"text": "not of MMC4"},
    ]
    (folder / "docs_shard_0_v2.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))


def write_obelics(folder):
    folder.mkdir(parents=True)
    rows = [
        {
            "images": ["https://example.org/0.jpg", None, "https://example.org/99.jpg", None],
            "texts": [None, "A cat.", None, "A dog."],
            "metadata": "[]",
        },
        {"images": [None], "texts": ["No image."], "metadata": "[]"},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-00000.parquet")
