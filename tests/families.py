"""A tiny random instance of each family of models, as folders that `from_pretrained` loads, with data for its task."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "fine", "bad", "sad", "the", "a", "film", "day", "was"]
WORDS += ["<image>", "user", "assistant"]
SIDE = 16  # pixels

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' ' }}{% for part in message['content'] %}"
    "{{ '<image> ' if part['type'] == 'image' else part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{{ 'assistant ' if add_generation_prompt else '' }}"
)
DECODER = {
    "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
ENCODER = {
    "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip
WRITTEN = ENCODER | {"bos_token_id": 2, "eos_token_id": 3}
EYE = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE,
    "patch_size": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How to make one: the task that it goes through, its configuration, and the class that is saved."""

    task: str
    config: Callable[[], transformers.PretrainedConfig]
    model: str


FAMILIES = {
    "llama": Family("causal-lm", lambda: transformers.LlamaConfig(**DECODER), "LlamaForCausalLM"),
    "qwen": Family("causal-lm", lambda: transformers.Qwen3Config(**DECODER, head_dim=8), "Qwen3ForCausalLM"),
    "gemma": Family("causal-lm", lambda: transformers.Gemma3TextConfig(**DECODER, head_dim=8), "Gemma3ForCausalLM"),
    "mistral": Family("causal-lm", lambda: transformers.MistralConfig(**DECODER), "MistralForCausalLM"),
    "phi": Family("causal-lm", lambda: transformers.PhiConfig(**DECODER), "PhiForCausalLM"),
    "mixtral": Family(
        "causal-lm",
        lambda: transformers.MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2),
        "MixtralForCausalLM",
    ),
    "qwen-moe": Family(
        "causal-lm",
        lambda: transformers.Qwen3MoeConfig(
            **DECODER, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
        ),
        "Qwen3MoeForCausalLM",
    ),
    "gpt2": Family(
        "causal-lm",
        lambda: transformers.GPT2Config(
            vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=512, bos_token_id=2, eos_token_id=3
        ),
        "GPT2LMHeadModel",
    ),
    "t5": Family(
        "seq2seq",
        lambda: transformers.T5Config(
            vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0,
            pad_token_id=0, eos_token_id=3,
        ),
        "T5ForConditionalGeneration",
    ),
    "bert": Family("text-classification", lambda: transformers.BertConfig(**ENCODER), "BertModel"),
    "bert-words": Family("token-classification", lambda: transformers.BertConfig(**ENCODER), "BertModel"),
    "roberta": Family("text-classification", lambda: transformers.RobertaConfig(**ENCODER), "RobertaModel"),
    "modernbert": Family(
        "text-classification",
        lambda: transformers.ModernBertConfig(
            **ENCODER, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3
        ),
        "ModernBertModel",
    ),
    "llama-classifies": Family("text-classification", lambda: transformers.LlamaConfig(**DECODER), "LlamaModel"),
    "vit": Family("image-classification", lambda: transformers.ViTConfig(**EYE), "ViTModel"),
    "dinov2": Family("image-classification", lambda: transformers.Dinov2Config(**EYE), "Dinov2Model"),
    "clip": Family(
        "image-classification",
        lambda: transformers.CLIPConfig(text_config=ENCODER, vision_config=EYE, projection_dim=16),
        "CLIPModel",
    ),
    "siglip": Family(
        "image-classification", lambda: transformers.SiglipConfig(text_config=ENCODER, vision_config=EYE), "SiglipModel"
    ),
    "clip-matches": Family(
        "image-text-matching",
        lambda: transformers.CLIPConfig(text_config=WRITTEN, vision_config=EYE, projection_dim=16),
        "CLIPModel",
    ),
    "siglip-matches": Family(
        "image-text-matching", lambda: transformers.SiglipConfig(text_config=WRITTEN, vision_config=EYE), "SiglipModel"
    ),
    "llava": Family(
        "image-text-to-text",
        lambda: transformers.LlavaConfig(
            vision_config={**EYE, "model_type": "clip_vision_model"}, text_config={**DECODER, "model_type": "llama"},
            image_token_index=WORDS.index("<image>"), vision_feature_layer=-1,
        ),
        "LlavaForConditionalGeneration",
    ),
}  # fmt: skip


def make_base(name: str, folder: Path) -> Path:
    """Writes the family's model, with a tokenizer or an image processor."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    getattr(transformers, family.model)(family.config()).save_pretrained(folder)
    if family.task == "image-text-to-text":
        transformers.LlavaProcessor(
            processor(), tokenizer(), patch_size=EYE["patch_size"], vision_feature_select_strategy="default",
            chat_template=TEMPLATE, num_additional_image_tokens=1,
        ).save_pretrained(folder)  # fmt: skip
    else:
        if family.task.startswith("image"):
            processor().save_pretrained(folder)
        if family.task != "image-classification":
            tokenizer().save_pretrained(folder)
    return folder


def processor() -> Any:
    """Of images of any size."""
    return transformers.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a word."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        bos_token="[CLS]", eos_token="[SEP]", additional_special_tokens=["<image>"],
    )  # fmt: skip


def make_data(task: str, folder: Path) -> tuple[dict[str, Any], Path]:
    """The task's section of a configuration, and a file with 24 rows for it."""
    draw = random.Random(0)
    for label, shade in (("dark", 40), ("light", 210)) if task.startswith("image") else ():
        (folder / "images" / label).mkdir(parents=True, exist_ok=True)
        for i in range(12):
            pixels = np.clip(np.random.default_rng(i).normal(shade, 30, (SIDE, SIDE, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / label / f"{i}.png")
    if task == "image-classification":
        return {"type": task, "labels": ["dark", "light"]}, folder / "images"
    rows = []
    for i in range(24):
        words = ["the", draw.choice(["film", "day"]), "was", draw.choice(["good", "fine", "bad", "sad"])]
        rows.append(
            {
                "text": " ".join(words),
                "label": "+" if words[-1] in ("good", "fine") else "-",
                "words": words,
                "tags": ["O", "B-THING", "O", "O"],
                "source": " ".join(words[:2]),
                "target": " ".join(words[2:]),
                "image": f"images/{('dark', 'light')[i % 2]}/{i // 2}.png",
            }
        )
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    labels = {"text-classification": ["+", "-"], "token-classification": ["O", "B-THING", "I-THING"]}
    return {"type": task} | ({"labels": labels[task]} if task in labels else {}), path
