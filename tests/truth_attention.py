"""The truth about attention, residual streams and gates."""

from tests.truth_kinds import LAYERS, NORMS, Truth, each, fused

LN = {"*ln_?.weight": "norm_scale", "*ln_?.bias": "norm_shift"}
FINAL = {"3.weight": "norm_scale", "3.bias": "norm_shift"}  # of Sequential(stem, 1, 2, norm, head)
MHA = {"*in_proj_weight": "weight"}
QKV = "query|key|value"
TWO = {"*.q.weight": "query/2", "*.k.weight": "key/2", "*.v.weight": "value/2"}
TWO_AND_OUT = TWO | {"*.o.weight": "out/2"}

SEQUENCE = {
    "encoder": Truth(
        MHA | NORMS | LAYERS,
        branches=each(
            "layers.{}.self_attn.out_proj.weight", "layers.{}.linear2.weight", times=(0, 1)
        ),
        branch_layers=(2,) * 4,
        attention={"*in_proj_weight": f"{QKV}/2", "*out_proj.weight": "out/2"},
        parts={"*in_proj_weight": fused(16)},
        nonlinearity={"*linear1.weight": "relu"},
        outputs=("layers.1.linear2.weight",),
    ),
    "norm_first_encoder": Truth(
        MHA | NORMS | LAYERS,
        branches=each(
            "1.layers.{}.self_attn.out_proj.weight", "1.layers.{}.linear2.weight", times=(0, 1)
        ),
        branch_layers=(2,) * 4,
        attention={"*in_proj_weight": f"{QKV}/2", "*out_proj.weight": "out/2"},
        parts={"*in_proj_weight": fused(16)},
        nonlinearity={"*linear1.weight": "relu"},
        outputs=("2.weight",),
    ),
    "decoder": Truth(
        {"target.weight": "embedding"} | MHA | NORMS | LAYERS,
        branches=each(
            "decoder.layers.{}.self_attn.out_proj.weight",
            "decoder.layers.{}.multihead_attn.out_proj.weight",
            "decoder.layers.{}.linear2.weight",
            times=(0, 1),
        ),
        branch_layers=(2,) * 6,
        attention={"*in_proj_weight": f"{QKV}/2", "*out_proj.weight": "out/2"},
        parts={"*in_proj_weight": fused(16)},
        nonlinearity={"*linear1.weight": "gelu"},
        outputs=("head.weight",),
    ),
    "cross_attention": Truth(
        {"queries": "other", "attn.*_proj_weight": "weight"} | NORMS | LAYERS,
        attention={
            "attn.q_proj_weight": "query/4",
            "attn.k_proj_weight": "key/4",
            "attn.v_proj_weight": "value/4",
            "attn.out_proj.weight": "out/4",
        },
        outputs=("head.weight",),
    ),
    "nanogpt": Truth(
        {"wte.weight": "embedding", "wpe.weight": "position"} | MHA | LN | LAYERS,
        branches=each("h.{}.attn.out_proj.weight", "h.{}.proj.weight", times=range(3)),
        branch_layers=(2,) * 6,
        attention={"*in_proj_weight": f"{QKV}/2", "*out_proj.weight": "out/2"},
        parts={"*in_proj_weight": fused(16)},
        nonlinearity={"*.fc.weight": "gelu"},
        outputs=("wte.weight",),
        ties=(("wte.weight", "head.weight"),),
    ),
}


def stacked(attn: str, heads: int, attention: dict[str, str], **more: object) -> Truth:
    """Sequential(stem, block, block, norm, head) of blocks that attend, then a GELU perceptron."""
    return Truth(
        FINAL | LN | LAYERS,
        branches=each(f"{{}}.attn.{attn}.weight", "{}.mlp.c_proj.weight", times=(1, 2)),
        branch_layers=(2,) * 4,
        attention=attention | {f"*.attn.{attn}.weight": f"out/{heads}"},
        nonlinearity={"*c_fc.weight": "gelu"},
        outputs=("4.weight",),
        **more,
    )


INTERLEAVED = (
    ("query", ((0, 8), (24, 32))),
    ("key", ((8, 16), (32, 40))),
    ("value", ((16, 24), (40, 48))),
)

ATTENTION = {
    "fused_gpt": Truth(
        {"wte.weight": "embedding", "wpe.weight": "position"} | LN | LAYERS,
        branches=each("h.{}.attn.c_proj.weight", "h.{}.mlp.c_proj.weight", times=(0, 1)),
        branch_layers=(2,) * 4,
        attention={"*c_attn.weight": f"{QKV}/4", "*attn.c_proj.weight": "out/4"},
        parts={"*c_attn.weight": fused(16)},
        nonlinearity={"*c_fc.weight": "gelu"},
        outputs=("wte.weight",),
        ties=(("wte.weight", "lm_head.weight"),),
    ),
    "handmade_attention": stacked("o", 2, TWO),
    "interleaved_attention": stacked(
        "dense",
        2,
        {"*query_key_value.weight": f"{QKV}/2"},
        parts={"*query_key_value.weight": INTERLEAVED},
    ),
    "grouped_attention": stacked(
        "out", 4, {"*qkv.weight": f"{QKV}/4"}, parts={"*qkv.weight": fused(16, 8)}
    ),
    "parallel_block": Truth(
        FINAL | {"?.ln.weight": "norm_scale", "?.ln.bias": "norm_shift"} | LAYERS,
        branches=tuple((f"{i}.attn.o.weight", f"{i}.mlp.c_proj.weight") for i in (1, 2)),
        branch_layers=(2, 2),
        attention=TWO_AND_OUT,
        nonlinearity={"*c_fc.weight": "gelu"},
        outputs=("4.weight",),
    ),
    "layer_scale": Truth(
        {"*gamma_?": "branch_scale"} | FINAL | NORMS | LAYERS,
        branches=each("{}.attn.c_proj.weight", "{}.mlp.c_proj.weight", times=(1, 2)),
        branch_layers=(2,) * 4,
        attention={"*c_attn.weight": f"{QKV}/4", "*attn.c_proj.weight": "out/4"},
        parts={"*c_attn.weight": fused(16)},
        nonlinearity={"*c_fc.weight": "gelu"},
        outputs=("4.weight",),
    ),
    "rezero": Truth(
        {"*resweight": "branch_scale", "*in_proj_weight": "weight"} | LAYERS,
        branches=each("{}.attn.out_proj.weight", "{}.linear2.weight", times=(1, 2)),
        branch_layers=(2,) * 4,
        attention={"*in_proj_weight": f"{QKV}/2", "*out_proj.weight": "out/2"},
        parts={"*in_proj_weight": fused(16)},
        nonlinearity={"*linear1.weight": "relu"},
        outputs=("3.weight",),
    ),
    "shared_block": Truth(
        LN | LAYERS,
        branches=each("block.attn.o.weight", "block.mlp.c_proj.weight") * 3,
        branch_layers=(2,) * 6,
        attention=TWO_AND_OUT,
        nonlinearity={"*c_fc.weight": "gelu"},
        outputs=("head.weight",),
    ),
    "rms_norm": Truth(
        {"norms.*": "norm_scale"} | LAYERS,
        branches=each("mlps.{}.c_proj.weight", times=(0, 1)),
        branch_layers=(2, 2),
        nonlinearity={"*c_fc.weight": "gelu"},
        outputs=("head.weight",),
    ),
    "gemma_norm": Truth(
        {"norms.*": "norm_scale"} | LAYERS,
        branches=each("mlps.{}.c_proj.weight", times=(0, 1)),
        branch_layers=(2, 2),
        nonlinearity={"*c_fc.weight": "gelu"},
        outputs=("head.weight",),
        identity={"norms.*": 0.0},
    ),
}

GATES = {
    "highway": Truth(
        LAYERS,
        nonlinearity={"*transform.weight": "relu", "*carry.weight": "sigmoid"},
        outputs=("3.weight",),
    ),
    "feature_gate": Truth(
        LAYERS,
        branches=(("down.weight",),),
        branch_layers=(2,),
        nonlinearity={
            "up.weight": "mish",
            "squeeze.weight": "relu",
            "excite.weight": "sigmoid",
            "attend.weight": "sigmoid",
        },
        outputs=("head.weight",),
    ),
    "attention_pooling": Truth(
        LAYERS,
        nonlinearity={"stem.weight": "selu", "hidden.weight": "tanh"},
        outputs=("head.weight",),
    ),
    "experts": Truth(
        NORMS | LAYERS,
        branches=tuple(
            tuple(f"layers.{layer}.experts.{e}.2.weight" for e in range(3)) for layer in (0, 1)
        ),
        branch_layers=(2, 2),
        nonlinearity={"*.experts.?.0.weight": "gelu"},
        outputs=("head.weight",),
    ),
    "sparse_experts": Truth(
        NORMS | LAYERS,
        branches=tuple(
            tuple(f"layers.{layer}.w2.{e}.weight" for e in range(3)) for layer in (0, 1)
        ),
        branch_layers=(2, 2),
        nonlinearity={"*.w1.?.weight": "silu"},
        outputs=("head.weight",),
    ),
    "stacked_experts": Truth(
        {"*.w_in": "weight", "*.w_out": "weight"} | NORMS | LAYERS,
        branches=(("layers.0.w_out",), ("layers.1.w_out",)),
        branch_layers=(2, 2),
        nonlinearity={"*.w_in": "gelu"},
        outputs=("head.weight",),
    ),
    "relative_bias": Truth(
        {"cls": "other", "distances.weight": "other"} | NORMS | LAYERS,
        branches=(("o.weight",),),
        branch_layers=(2,),
        attention={
            "q.weight": "query/2",
            "k.weight": "key/2",
            "v.weight": "value/2",
            "o.weight": "out/2",
        },
        outputs=("head.weight",),
    ),
    "normalized_queries": Truth(
        {"temperature": "other", "?_norm.weight": "norm_scale"} | LAYERS,
        branches=(("proj.weight",),),
        branch_layers=(2,),
        attention={"qkv.weight": f"{QKV}/2", "proj.weight": "out/2"},
        parts={"qkv.weight": fused(16)},
        outputs=("head.weight",),
    ),
}
