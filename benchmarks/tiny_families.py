"""A tiny random model of every family of the installed transformers that can score a pair; for families.py.

Sizes are set by the names that configurations have for them; what a family needs beside is in `special`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no"]
WORDS = [
    "sun",
    "moon",
    "star",
    "rain",
    "snow",
    "wind",
    "river",
    "lake",
    "hill",
    "stone",
    "sand",
    "tree",
    "leaf",
    "root",
    "seed",
    "rose",
    "fern",
    "moss",
    "bird",
    "fish",
    "query",
    "document",
    ":",
]
VOCABULARY = [
    *SPECIAL,
    *WORDS,
    *"abcdefghijklmnopqrstuvwxyz0123456789.,;?!*=",
    *[f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"],
]
POSITIONS = 640
# What configurations call the same few sizes.
SIZES: dict[int, tuple[str, ...]] = {
    len(VOCABULARY): ("vocab_size", "n_vocab", "entity_vocab_size", "src_vocab_size", "vocab_size_per_layer_input", "tgt_vocab_size", "encoder_vocab_size"),
    POSITIONS: ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"),
    32: ("hidden_size", "d_model", "dim", "n_embd", "emb_dim", "embedding_size", "moe_intermediate_size", "moe_hidden_size",
         "attention_hidden_size", "lru_width", "embedding_dim", "kv_channels_hidden", "dim_att", "q_lora_rank", "kv_lora_rank"),
    2: ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers", "num_decoder_layers",
        "num_key_value_heads", "num_kv_heads", "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts"),
    4: ("num_attention_heads", "n_heads", "n_head", "encoder_attention_heads", "decoder_attention_heads", "num_heads",
        "num_local_experts", "num_experts", "n_routed_experts", "mamba_n_heads", "mamba_num_heads"),
    8: ("head_dim", "d_kv", "qk_nope_head_dim", "v_head_dim", "qk_rope_head_dim", "mamba_d_head", "attention_head_dim"),
    64: ("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "hidden_dim", "d_inner", "ffn_hidden_size",
         "shared_expert_intermediate_size", "shared_intermediate_size", "intermediate_size_mlp"),
}  # fmt: skip
MAY_BE_NONE = ("vocab_size", "head_dim", "num_key_value_heads", "num_experts_per_tok")  # by default
IDS = {
    "pad_token_id": 0,
    "bos_token_id": 2,
    "cls_token_id": 2,
    "eos_token_id": 3,
    "sep_token_id": 3,
    "decoder_start_token_id": 2,
}


def families() -> list[tuple[str, str]]:
    """(model_type, encoder or decoder) of all families that have a class which could score a pair."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto as auto

    classifiers, causal = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    decoders = {kind for kind in causal if kind not in masked}
    both = {kind for kind in decoders & set(classifiers) if CONFIG_MAPPING[kind]().is_encoder_decoder}
    return [(kind, "decoder" if kind in decoders - both else "encoder") for kind in sorted({*classifiers, *decoders})]


def composed(kind: str) -> bool:
    """Whether a family is made of several models, whose configurations are large by default."""
    from transformers import CONFIG_MAPPING

    return bool(CONFIG_MAPPING[kind].sub_configs.keys() - {"attn_config", "ffn_config"})


def tiny_config(kind: str) -> Any:
    """The configuration of a family, as small as its own names for sizes let it be."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[kind]
    defaults = cls().to_dict()
    sizes = {
        name: size
        for size, names in SIZES.items()
        for name in names
        if isinstance(defaults.get(name), int) or (name in MAY_BE_NONE and name in defaults)
    }
    if kind in ("albert", "electra"):
        sizes["embedding_size"] = 16
    sizes |= {name: value for name, value in IDS.items() if name in defaults or name == "pad_token_id"}
    if defaults.get("is_encoder_decoder"):
        sizes["decoder_start_token_id"] = IDS["decoder_start_token_id"]
    return cls(**{**sizes, **special(kind)})


def special(kind: str) -> dict[str, Any]:
    """What families need beside small sizes."""
    extra: dict[str, dict[str, Any]] = {
        "longformer": {"attention_window": 16}, "reformer": {"axial_pos_shape": [16, 40], "axial_pos_embds_dim": [16, 16], "is_decoder": False},
        "modernbert": {"local_attention": 16}, "funnel": {"block_sizes": [1, 1], "d_head": 8}, "mobilebert": {"embedding_size": 32, "intra_bottleneck_size": 32},
        "convbert": {"embedding_size": 32}, "fnet": {"tpu_short_seq_length": POSITIONS}, "yoso": {"num_hash": 4, "hash_code_len": 4},
        "flaubert": {"emb_dim": 32}, "xlm": {"emb_dim": 32}, "perceiver": {"d_latents": 32, "num_latents": 8},
        "axk1": {"n_group": 1, "topk_group": 1}, "axk2": {"n_group": 1, "topk_group": 1}, "xmod": {"default_language": "en_XX"}, "codegen": {"rotary_dim": 8}, "gptj": {"rotary_dim": 8}, "gemma3n_text": {"num_kv_shared_layers": 0},
        "gemma4_text": {"num_kv_shared_layers": 0}, "nystromformer": {"segment_means_seq_len": 64, "num_landmarks": 64},  # equal, as published
        "phi3": {"original_max_position_embeddings": POSITIONS},
        "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    }  # fmt: skip
    latent = (
        "axk",
        "deepseek",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "longcat",
        "youtu",
        "mistral4",
        "esmc",
        "dots3_note_text",
        "minicpm3",
        "kimi",
    )
    heads = {"num_key_value_heads": 4} if kind.startswith(latent) else {}
    mamba = {"mamba_n_heads": 8} if kind in ("bamba", "falcon_h1", "granitemoehybrid") else {}
    return {**heads, **mamba, **extra.get(kind, {})}


def write_tokenizer(folder: Path, decoder: bool) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    if not decoder:
        raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        eos_token="[SEP]", bos_token="[CLS]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip


def build(kind: str, decoder: bool, folder: Path) -> str:
    """Saves a tiny random model of a family; returns how it is read: first, score or yes_no."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.models.auto import modeling_auto as auto

    scores = kind in auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    config = tiny_config(kind)
    config.num_labels = 1
    torch.manual_seed(0)
    model = (AutoModelForSequenceClassification if scores else AutoModelForCausalLM).from_config(config)
    for parameter in model.parameters():  # large enough that attention says something
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.float().eval().save_pretrained(folder)
    write_tokenizer(folder, decoder)
    return ("score" if scores else "yes_no") if decoder else "first"
