"""Fashion-MNIST as data, and two base models that have seen a part of it: a vision transformer and a dual encoder."""

import gzip
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import transformers
from fetch import DebianFile, debian_file
from PIL import Image
from pyarrow import parquet

FOLDER = "/usr/share/datasets/fashion-mnist"
IMAGES = DebianFile(
    "dataset-fashion-mnist",
    f"{FOLDER}/train-images-idx3-ubyte.gz",
    "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
)
LABELS = DebianFile(
    "dataset-fashion-mnist",
    f"{FOLDER}/train-labels-idx1-ubyte.gz",
    "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
)
NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SEEN = range(6)  # classes that the base models were trained on; the others are new to them
NEW = range(6, 10)
PIXELS = 28
ROWS_A_GARMENT = 600
ROWS_A_CAPTIONED = 240
SHADES = ("dark", "grey", "bright")  # thirds of all images by the mean of what is not background
PRETRAINING_STEPS = 1200
PRETRAINING_ROWS = 64  # a step


def make_garments(scratch: Path, target: Path) -> None:
    """Parquet of images and labels of the classes that the base has not seen."""
    pixels, labels = _fashion(scratch)
    numbers = _some(labels, NEW, ROWS_A_GARMENT)
    _write(target, pixels[numbers], label=[NAMES[label] for label in labels[numbers]])


def make_captions(scratch: Path, target: Path) -> None:
    """Parquet of images of all classes with a caption that names shade and kind, and the kind."""
    pixels, labels = _fashion(scratch)
    numbers = _some(labels, range(10), ROWS_A_CAPTIONED)
    pixels, labels = pixels[numbers], labels[numbers]
    brightness = np.array([image[image > 0].mean() for image in pixels])
    shade = np.digitize(brightness, np.quantile(brightness, [1 / 3, 2 / 3]))
    kinds = [NAMES[label] for label in labels]
    captions = [f"a photo of a {SHADES[s]} {kind}" for s, kind in zip(shade, kinds, strict=True)]
    _write(target, pixels, text=captions, kind=kinds)


def make_vit(scratch: Path, target: Path) -> None:
    """A small vision transformer, trained on classes 0 to 5."""
    pixels, labels = _fashion(scratch)
    seen = np.isin(labels, SEEN)
    pixels, labels = pixels[seen], labels[seen]
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more are slower for so small a model
    rng = np.random.default_rng(0)
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=PIXELS, patch_size=7, num_channels=3, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=128, num_labels=len(SEEN), id2label=dict(enumerate(NAMES[: len(SEEN)])),
            label2id={name: number for number, name in enumerate(NAMES[: len(SEEN)])},
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, PRETRAINING_STEPS)
    for _ in range(PRETRAINING_STEPS):
        rows = rng.integers(len(labels), size=PRETRAINING_ROWS)
        images = torch.from_numpy(pixels[rows]).float().div(127.5).sub(1)[:, None].expand(-1, 3, -1, -1)
        loss = model(pixel_values=images, labels=torch.from_numpy(labels[rows]).long()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(target)
    _processor().save_pretrained(target)


def make_dual(vit: Path, minilm: Path, target: Path) -> None:
    """That transformer and MiniLM as a dual encoder; its two projections are random still."""
    torch.manual_seed(0)
    model = transformers.VisionTextDualEncoderModel.from_vision_text_pretrained(
        str(vit), str(minilm), projection_dim=64
    )
    model.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(target)
    _processor().save_pretrained(target)


def _processor() -> transformers.BaseImageProcessor:
    size = {"height": PIXELS, "width": PIXELS}
    return transformers.ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def _fashion(scratch: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 of shape (60000, 28, 28), and labels, uint8 of shape (60000,); the files are in IDX format."""
    images = gzip.decompress(debian_file(IMAGES, scratch).read_bytes())
    labels = gzip.decompress(debian_file(LABELS, scratch).read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, PIXELS, PIXELS), np.frombuffer(
        labels, np.uint8, offset=8
    )


def _some(labels: np.ndarray, classes: range, rows: int) -> np.ndarray:
    """Numbers of the first `rows` rows of each class, in the order of the file."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:rows] for label in classes]))


def _write(target: Path, pixels: np.ndarray, **columns: list[str]) -> None:
    parquet.write_table(
        pa.table({"image": [{"bytes": _png(image), "path": None} for image in pixels], **columns}), target
    )


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
