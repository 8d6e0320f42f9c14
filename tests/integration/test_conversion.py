"""GGUF bases: unpacked once, found again, and made anew where what was kept is damaged or of something else."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from tests.families import DECODER, make_base
from transformers import LlamaForCausalLM

from conlora.config import NodeConfig
from conlora.errors import ConfigError
from conlora.training import conversion
from conlora.training.model import Built, build_model

BLOCKS = {
    "input_layernorm": "attn_norm",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A folder with a tiny Llama in a GGUF file, and its tokenizer."""
    whole = make_base("llama", tmp_path / "whole")
    weights = LlamaForCausalLM.from_pretrained(whole).state_dict()
    folder = tmp_path / "packed"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(whole / name, folder)
    write_gguf(folder / "model.gguf", weights)
    return folder


def write_gguf(path: Path, weights: dict[str, torch.Tensor], but: str = "") -> None:
    """but: what is left out."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(DECODER["num_hidden_layers"])
    writer.add_context_length(DECODER["max_position_embeddings"])
    writer.add_embedding_length(DECODER["hidden_size"])
    writer.add_feed_forward_length(DECODER["intermediate_size"])
    writer.add_head_count(DECODER["num_attention_heads"])
    writer.add_head_count_kv(DECODER["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(DECODER["vocab_size"])
    for ours, theirs in WHOLE.items():
        writer.add_tensor(f"{theirs}.weight", weights[f"{ours}.weight"].numpy())
    for i in range(DECODER["num_hidden_layers"]):
        for ours, theirs in BLOCKS.items():
            if ours != but:
                writer.add_tensor(f"blk.{i}.{theirs}.weight", weights[f"model.layers.{i}.{ours}.weight"].numpy())
        for kind in "qk":  # such files have halves of each head in another order
            weight = weights[f"model.layers.{i}.self_attn.{kind}_proj.weight"].numpy()
            heads = DECODER["num_attention_heads" if kind == "q" else "num_key_value_heads"]
            halves = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{i}.attn_{kind}.weight", halves)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def build(packed: Path, tmp_path: Path) -> Callable[..., Built]:
    """Builds the model of a node with that base; `model`: other keys of the section."""

    def build(**model: str) -> Built:
        return build_model(
            NodeConfig.model_validate(
                {
                    "name": "a",
                    "state_dir": tmp_path / "state",
                    "model": {"base": str(packed), **model},
                    "task": {"type": "causal-lm", "max_length": 8},
                    "data": {"hub": "a/b"},
                }
            )
        )

    return build


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that have been unpacked, one entry for each time."""
    done: list[Path] = []
    save = conversion._save

    def noted(source: Path, *arguments: object) -> None:
        done.append(source)
        save(source, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(conversion, "_save", noted)
    return done


def kept(tmp_path: Path) -> Path:
    """The folder with what was kept."""
    (folder,) = (path for path in (tmp_path / "state" / "converted").iterdir() if path.is_dir())
    return folder


def test_a_base_is_unpacked_once_and_is_what_was_packed(
    build: Callable[..., Built], conversions: list[Path], packed: Path, tmp_path: Path
) -> None:
    first, second = build(), build()
    assert conversions == [packed / "model.gguf"]
    digest = hashlib.sha256((packed / "model.gguf").read_bytes()).digest()
    assert first.fingerprint == second.fingerprint == hashlib.sha256(digest).hexdigest(), "that of the original"
    whole = LlamaForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
    for built in (first, second):
        loaded = {
            name.removeprefix("base_model.model.").replace(".base_layer", ""): value
            for name, value in built.model.state_dict().items()
            if "lora_" not in name
        }
        assert loaded.keys() == whole.keys()
        assert [name for name in whole if not torch.equal(whole[name], loaded[name])] == []


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def turn_a_bit(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def lose_a_file(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_the_manifest(folder: Path) -> None:
    (folder / "digests.json").write_text('{"config.')


def be_interrupted(folder: Path) -> None:
    folder.rename(folder.with_name("partial"))


@pytest.mark.parametrize("damage", [cut_short, turn_a_bit, lose_a_file, break_the_manifest, be_interrupted])
def test_what_is_damaged_is_made_anew(
    build: Callable[..., Built], conversions: list[Path], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    build()
    before = {path.name: path.read_bytes() for path in kept(tmp_path).iterdir()}
    damage(kept(tmp_path))
    build()
    assert len(conversions) == 2
    assert {path.name: path.read_bytes() for path in kept(tmp_path).iterdir()} == before


def test_another_precision_takes_the_place_of_the_first(
    build: Callable[..., Built], conversions: list[Path], tmp_path: Path
) -> None:
    fingerprint = build().fingerprint
    built = build(dtype="bfloat16")
    assert built.fingerprint == fingerprint
    assert built.model.get_input_embeddings().weight.dtype is torch.bfloat16
    assert len(conversions) == 2
    assert "bfloat16" in kept(tmp_path).name


def test_what_can_not_be_converted_is_told(
    build: Callable[..., Built], packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = packed / "model.gguf"
    shutil.copy(file, packed / "other.gguf")
    with pytest.raises(ConfigError, match="holds 2 GGUF files; give a folder with the one that all nodes use"):
        build()
    (packed / "other.gguf").unlink()
    with monkeypatch.context() as without:
        without.setattr(conversion, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match="needs the package gguf"):
            build()
    data = file.read_bytes()
    unpacked = r"model\.gguf can't be unpacked \(.*\); get it again, or give the model in safetensors$"
    loaded = (
        r"packed can't be loaded \(.*\); give a folder with config\.json, tokenizer and weights, or the id of a hub"
    )
    for length, sentence in ((0, loaded), (64, unpacked), (len(data) // 2, loaded), (len(data) - 100, loaded)):
        file.write_bytes(data[:length])
        with pytest.raises(ConfigError, match=sentence):
            build()


def test_what_the_file_lacks_is_seeded(build: Callable[..., Built], packed: Path, tmp_path: Path) -> None:
    """Drawn at random when it was unpacked, it would be another on every node."""
    weights = LlamaForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
    write_gguf(packed / "model.gguf", weights, but="mlp.up_proj")
    built = build()
    assert [spec.name for spec in built.shared.tensors if "up_proj" in spec.name], "it is trained and mixed"
    shutil.rmtree(tmp_path / "state")
    again = build()
    for one, other in zip(built.adapter.schema.tensors, again.adapter.schema.tensors, strict=True):
        assert one == other
    assert (built.adapter.read(built.shared) == again.adapter.read(again.shared)).all()
