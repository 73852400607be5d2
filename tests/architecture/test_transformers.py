"""Architectures of the transformers package by tiny configuration, beside what their code says."""

import re
from collections import Counter
from fnmatch import fnmatchcase

import pytest
import torch

from lightning_init import analyze
from tests.zoo import ids, noise

tf = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SPECIAL = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = SPECIAL | {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 24, "max_position_embeddings": 32},
}
GROUPED = TEXT | {"num_key_value_heads": 2}
WIDE = GROUPED | {"head_dim": 4}
GPT = SPECIAL | {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
PAIR = SPECIAL | {
    **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")},
    **{"d_model": 16, "max_position_embeddings": 32, "decoder_start_token_id": 1},
}
IMAGE = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 3},
    **{"intermediate_size": 24, "image_size": 16, "patch_size": 8},
}
AUDIO = TEXT | {
    **{"conv_dim": (8, 8), "conv_stride": (4, 2), "conv_kernel": (8, 4), "layerdrop": 0.0},
    **{"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "mask_time_prob": 0.0},
    "num_conv_pos_embedding_groups": 2,
}
DEEPSEEK = TEXT | {
    **{"num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 12, "first_k_dense_replace": 1},
    **{"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 2, "qk_nope_head_dim": 4},
    **{"v_head_dim": 4, "n_shared_experts": 1},
}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
ALL, SOME = "query/4 key/4 value/4 out/4", "query/4 key/2 value/2 out/4"
FUSED, LOW_RANK = "query|key|value/4 out/4", "query/4 key/1 key|value/4 out/4"
STAGES = " ".join(f"{part}/{n}" for n in (1, 2) for part in ("query", "key", "value", "out"))
WINDOWS = " ".join(f"{part}/{n}" for n in (2, 4) for part in ("query", "key", "value", "out"))

# class: configuration, input, residual sums, ends of branches, heads, OTHER roles
CASES = {
    "OPTForCausalLM": (
        TEXT | {"ffn_dim": 24, "word_embed_proj_dim": 16},
        "text",
        4,
        "out_proj fc2",
        ALL,
        "",
    ),
    "Phi3ForCausalLM": (GROUPED, "text", 4, "o_proj down_proj", FUSED, ""),
    "PhiForCausalLM": (TEXT, "text", 2, "dense fc2", ALL, ""),
    "FalconForCausalLM": (TEXT, "text", 2, "dense dense_4h_to_h", FUSED, ""),
    "GPTNeoXForCausalLM": (TEXT, "text", 2, "dense dense_4h_to_h", FUSED, ""),
    "BloomForCausalLM": (
        TEXT | {"n_layer": 2, "n_head": 4},
        "text",
        4,
        "dense dense_4h_to_h",
        FUSED,
        "",
    ),
    "GPTJForCausalLM": (GPT | {"rotary_dim": 2}, "text", 2, "out_proj fc_out", ALL, ""),
    "GPTBigCodeForCausalLM": (GPT, "text", 4, "c_proj", FUSED, ""),
    "GemmaForCausalLM": (WIDE, "text", 4, "o_proj down_proj", SOME, ""),
    "Gemma2ForCausalLM": (
        WIDE | {"query_pre_attn_scalar": 4},
        "text",
        4,
        "o_proj down_proj",
        SOME,
        "",
    ),
    "Qwen2ForCausalLM": (GROUPED, "text", 4, "o_proj down_proj", SOME, ""),
    "Qwen3ForCausalLM": (WIDE, "text", 4, "o_proj down_proj", SOME, ""),
    "StableLmForCausalLM": (
        TEXT | {"num_key_value_heads": 4},
        "text",
        4,
        "o_proj down_proj",
        ALL,
        "",
    ),
    "Olmo2ForCausalLM": (GROUPED, "text", 4, "o_proj down_proj", SOME, ""),
    "CohereForCausalLM": (GROUPED, "text", 2, "o_proj down_proj", SOME, ""),
    "MixtralForCausalLM": (
        GROUPED | {"num_local_experts": 3},
        "text",
        4,
        "o_proj down_proj",
        SOME,
        "",
    ),
    "Qwen2MoeForCausalLM": (GROUPED | EXPERTS, "text", 4, "o_proj down_proj", SOME, ""),
    "GptOssForCausalLM": (
        WIDE | {"num_local_experts": 3, "num_experts_per_tok": 2},
        "text",
        4,
        "o_proj down_proj",
        SOME,
        "*sinks",
    ),
    "DeepseekV2ForCausalLM": (DEEPSEEK, "text", 4, "o_proj down_proj", LOW_RANK, ""),
    "DeepseekV3ForCausalLM": (DEEPSEEK, "text", 4, "o_proj down_proj", LOW_RANK, ""),
    "DebertaV2ForSequenceClassification": (
        TEXT
        | {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "max_relative_positions": 8,
            "position_biased_input": False,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        },
        "text",
        4,
        "output.dense",
        ALL,
        "",
    ),
    "ElectraForSequenceClassification": (
        TEXT | {"embedding_size": 8},
        "text",
        4,
        "output.dense",
        ALL,
        "",
    ),
    "AlbertForSequenceClassification": (
        TEXT | {"embedding_size": 8},
        "text",
        4,
        "attention.dense ffn_output",
        ALL,
        "",
    ),
    "XLNetLMHeadModel": (
        SPECIAL | {"d_model": 16, "n_layer": 2, "n_head": 4, "d_inner": 24},
        "text",
        4,
        "rel_attn.o layer_2",
        ALL,
        "*seg_embed *mask_emb *r_s_bias",
    ),
    "DistilBertForSequenceClassification": (
        TEXT | {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24},
        "text",
        4,
        "out_lin lin2",
        ALL,
        "",
    ),
    "MPNetForSequenceClassification": (
        TEXT,
        "text",
        4,
        "attn.o output.dense",
        ALL,
        "*relative_attention_bias.weight",
    ),
    "RobertaForSequenceClassification": (TEXT, "text", 4, "output.dense", ALL, ""),
    "BartForConditionalGeneration": (PAIR, "pair", 5, "out_proj fc2", ALL, ""),
    "PegasusForConditionalGeneration": (PAIR, "pair", 5, "out_proj fc2", ALL, ""),
    "Speech2TextForConditionalGeneration": (
        PAIR
        | {
            "input_feat_per_channel": 6,
            "num_conv_layers": 2,
            "conv_channels": 8,
            "max_source_positions": 20,
            "max_target_positions": 20,
        },
        "speech",
        5,
        "out_proj fc2",
        ALL,
        "",
    ),
    "DeiTForImageClassification": (
        IMAGE,
        "image",
        4,
        "o_proj fc2",
        ALL,
        "*cls_token *distillation_token",
    ),
    "BeitForImageClassification": (
        IMAGE | {"use_relative_position_bias": True},
        "image",
        4,
        "o_proj fc2",
        ALL,
        "*cls_token *relative_position_bias_table",
    ),
    "Dinov2ForImageClassification": (IMAGE, "image", 4, "o_proj fc2", ALL, "*cls_token"),
    "Swinv2ForImageClassification": (
        {
            "image_size": 16,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [2, 1],
            "num_heads": [2, 4],
            "window_size": 2,
            "mlp_ratio": 2.0,
            "num_labels": 3,
        },
        "image",
        6,
        "output.dense o_proj fc2",
        WINDOWS,
        "*logit_scale",
    ),
    "ConvNextV2ForImageClassification": (
        {
            "num_stages": 2,
            "hidden_sizes": [8, 16],
            "depths": [1, 2],
            "patch_size": 2,
            "num_labels": 3,
        },
        "image",
        3,
        "pwconv2",
        "",
        "*grn.*",
    ),
    "SegformerForSemanticSegmentation": (
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [8, 16],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 16,
            "num_labels": 3,
        },
        "picture",
        4,
        "output.dense dense2 o_proj fc2",
        STAGES,
        "",
    ),
    "RegNetForImageClassification": (
        {
            "embedding_size": 8,
            "hidden_sizes": [16, 32],
            "depths": [1, 2],
            "groups_width": 8,
            "layer_type": "y",
            "num_labels": 3,
        },
        "picture",
        3,
        "convolution",
        "",
        "",
    ),
    "PoolFormerForImageClassification": (
        {
            "depths": [1, 1],
            "hidden_sizes": [8, 16],
            "num_encoder_blocks": 2,
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "padding": [2, 1],
            "num_labels": 3,
        },
        "picture",
        2,
        "conv2",
        "",
        "",
    ),
    "HubertForCTC": (AUDIO, "wave", 5, "out_proj output_dense original1", ALL, "*original0"),
    "Wav2Vec2ConformerForCTC": (
        AUDIO | {"position_embeddings_type": "relative", "conv_depthwise_kernel_size": 3},
        "wave",
        8,
        "linear_out output_dense pointwise_conv2",
        ALL,
        "",
    ),
    "SiglipModel": (
        {"text_config": TEXT, "vision_config": IMAGE},
        "both",
        9,
        "out_proj fc2",
        f"{ALL} query|key|value/4",
        "*logit_scale *logit_bias *probe",
    ),
    "RwkvForCausalLM": (
        TEXT | {"attention_hidden_size": 16, "context_length": 16},
        "text",
        4,
        "output value",
        "",
        "*time_*",
    ),
    "Mamba2ForCausalLM": (
        SPECIAL
        | {
            "hidden_size": 16,
            "state_size": 4,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "head_dim": 8,
            "expand": 2,
            "n_groups": 1,
            "chunk_size": 4,
        },
        "text",
        2,
        "out_proj",
        "",
        "*A_log *.D",
    ),
}
INPUTS = {
    "text": lambda: {"input_ids": ids(2, 6) + 3},
    "pair": lambda: {"input_ids": ids(2, 6) + 3, "decoder_input_ids": ids(2, 4) + 3},
    "speech": lambda: {"input_features": noise(2, 12, 6), "decoder_input_ids": ids(2, 4) + 3},
    "image": lambda: {"pixel_values": noise(2, 3, 16, 16)},
    "picture": lambda: {"pixel_values": noise(2, 3, 32, 32)},
    "wave": lambda: {"input_values": noise(2, 80)},
    "both": lambda: {"input_ids": ids(2, 6) + 3, "pixel_values": noise(2, 3, 16, 16)},
}


@pytest.mark.parametrize("name", CASES)
def test_tiny_configuration_is_understood(name):
    config, kind, branches, ends, heads, others = CASES[name]
    cls = getattr(tf, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(cls.config_class(**config)).eval()
        inputs = INPUTS[kind]()
    seen = analyze(model, lambda: model(**inputs))
    assert seen.num_branches == branches

    used = [info for info in seen if info.usage]
    matrices = [info for info in used if info.role in ("weight", "recurrent")]
    ending = [info for info in matrices if info.usage.ends_branch]
    named = re.compile(rf"({'|'.join(ends.split())})(\.weight|\.parametrizations.*|)$")
    assert [info.name for info in ending if not named.search(info.names[-1])] == []
    met = Counter(info.usage.branch for info in ending)
    if "Albert" not in name:  # one layer ends several branches
        assert set(met) == set(range(branches))

    parts = {f"{i.usage.attention}/{i.usage.num_heads}" for i in matrices if i.usage.attention}
    assert parts == set(heads.split())
    globs = others.split()
    unknown = {info.name for info in used if info.role == "other"}
    expected = {i.name for i in used if any(fnmatchcase(i.name, glob) for glob in globs)}
    assert unknown == expected
    assert {i.identity for i in used if i.role == "norm_scale"} == {0.0 if "Gemma" in name else 1.0}
