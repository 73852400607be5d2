"""The truth about models of the field, from reading their code."""

from tests.truth_kinds import LAYERS, NORMS, Truth, each, fused

QKV = "query|key|value"
BN = {"*bn*.weight": "norm_scale", "*bn*.bias": "norm_shift"}
LN = {"*ln*.weight": "norm_scale", "*ln*.bias": "norm_shift"}
MANY = {"*norms*weight": "norm_scale", "*norms*bias": "norm_shift"}


def halves(width: int) -> tuple[tuple[str, tuple[tuple[int, int], ...]], ...]:
    """Rows of key and value, one after the other."""
    return (("key", ((0, width),)), ("value", ((width, 2 * width),)))


_IMAGES = {
    "xcit": Truth(
        {"*temperature": "other", "*gamma*": "branch_scale", "pos_embed": "position"}
        | BN
        | NORMS
        | LAYERS,
        branches=each(
            "blocks.{}.attn.proj.weight",
            "blocks.{}.local_mp.conv2.weight",
            "blocks.{}.fc2.weight",
            times=(0, 1),
        ),
        branch_layers=(2,) * 6,
        attention={"*qkv.weight": f"{QKV}/4", "*attn.proj.weight": "out/4"},
        parts={"*qkv.weight": fused(16)},
        nonlinearity={"*fc1.weight": "gelu", "*conv1.weight": "gelu"},
        outputs=("head.weight",),
    ),
    "poolformer": Truth(
        {"*layer_scale*": "branch_scale", "3.weight": "norm_scale", "3.bias": "norm_shift"}
        | NORMS
        | LAYERS,
        branches=each("{}.fc2.weight", times=(1, 2)),  # the branch of pools has no layer
        branch_layers=(2, 2),
        nonlinearity={"?.fc1.weight": "gelu"},
        outputs=("6.weight",),
    ),
    "nf_resnet": Truth(
        {"*skipinit_gain": "branch_scale", "*.gain": "other"} | LAYERS,
        branches=each("{}.conv3.weight", times=(1, 2)),
        branch_layers=(3, 3),
        nonlinearity={"0.weight": "silu", "*conv[12].weight": "silu"},
        outputs=("6.weight",),
    ),
    "mobilenet_v3": Truth(
        BN | LAYERS,
        branches=each("{}.project.weight", times=(1, 2)),
        branch_layers=(3, 3),
        nonlinearity={
            "?.expand.weight": "silu",
            "?.dw.weight": "silu",
            "?.fc1.weight": "relu",
            "?.fc2.weight": "sigmoid",
        },
        outputs=("5.weight",),
    ),
    "ddpm_unet": Truth(
        NORMS | LAYERS,
        branches=each(
            *("d1.block2.proj.weight", "m1.block2.proj.weight", "attn.to_out.weight"),
            *("m2.block2.proj.weight", "u1.block2.proj.weight"),
        ),
        branch_layers=(2,) * 5,
        attention={"attn.to_qkv.weight": f"{QKV}/2", "attn.to_out.weight": "out/2"},
        parts={"attn.to_qkv.weight": fused(8)},
        nonlinearity={
            "time_mlp.0.weight": "gelu",
            "time_mlp.2.weight": "silu",
            "*mlp.1.weight": "silu",  # half of it is added before the SiLU
            "*block?.proj.weight": "silu",
        },
        outputs=("final.weight",),
    ),
    "stylegan2": Truth(
        {"const": "other", "*noise_weight": "other"} | LAYERS,
        nonlinearity={"conv?.weight": "leaky_relu", "style*": "leaky_relu"},
        outputs=("to_rgb.weight",),
    ),
    "condconv": Truth(
        {"bias": "weight"} | LAYERS,  # a table of biases, mixed by a product
        nonlinearity={"routing.weight": "sigmoid"},
        outputs=("head.weight",),
    ),
    "dit": Truth(
        {"pos_embed": "position", "y_embedder.weight": "embedding"} | LAYERS,
        branches=each("blocks.{}.attn.proj.weight", "blocks.{}.mlp.fc2.weight", times=(0, 1)),
        branch_layers=(2,) * 4,
        attention={"*qkv.weight": f"{QKV}/2", "*attn.proj.weight": "out/2"},
        parts={"*qkv.weight": fused(16)},
        nonlinearity={"t_embedder.[02].weight": "silu", "*fc1.weight": "gelu"},
        outputs=("final_layer.linear.weight",),
    ),
}

_SEQUENCES = {
    "wavenet": Truth(
        LAYERS,
        branches=each("residual_convs.{}.weight", times=range(3)),
        branch_layers=(2,) * 3,
        nonlinearity={
            "filter*": "tanh",
            "gate*": "sigmoid",
            "skip*": "relu",
            "end_conv_1.weight": "relu",
        },
        # Nothing takes the stream behind the last layer.
        outputs=("residual_convs.2.weight", "end_conv_2.weight"),
    ),
    "rwkv": Truth(
        {"emb.weight": "embedding", "*time_*": "other"} | LN | LAYERS,
        branches=each("blocks.{}.att.output.weight", "blocks.{}.ffn.value.weight", times=(0, 1)),
        branch_layers=(2,) * 4,
        nonlinearity={"*ffn.key.weight": "relu", "*receptance.weight": "sigmoid"},
        outputs=("head.weight",),
    ),
    "hyena": Truth(
        {"emb.weight": "embedding", "ops.?.bias": "other"} | MANY | LAYERS,
        branches=each("ops.{}.out_proj.weight", times=(0, 1)),
        branch_layers=(3, 3),
        nonlinearity={"*filter.0.weight": "silu"},
        outputs=("head.weight",),
    ),
    "hand_lstm": Truth(
        {"W_*": "weight"} | LAYERS,  # the gates bend differently
        outputs=("out.weight",),
    ),
    "bahdanau": Truth(
        {"emb*": "embedding", "*weight_hh*": "recurrent", "*bias*": "bias"}
        | {"*weight_ih*": "weight"}
        | LAYERS,
        nonlinearity={"attention.[WU]a.weight": "tanh", "enc*": "tanh", "dec*": "tanh"},
        outputs=("out.weight",),
    ),
    "mixture_of_depths": Truth(
        NORMS | LAYERS,
        branches=each("{}.down.weight", times=(1, 2)),
        branch_layers=(2, 2),
        nonlinearity={"?.up.weight": "gelu"},
        outputs=("3.weight",),
    ),
    "conformer": Truth(
        {"*rel_pos_emb.weight": "position"}
        | {"*conv.[05].weight": "norm_scale", "*conv.[05].bias": "norm_shift"}
        | NORMS
        | LAYERS,
        branches=each(
            *("{}.ff1.fn.fn.3.weight", "{}.attn.fn.to_out.weight", "{}.conv.7.weight"),
            "{}.ff2.fn.fn.3.weight",
            times=(1, 2),
        ),
        branch_layers=(2, 2, 3, 2) * 2,
        attention={
            "*to_q.weight": "query/2",
            "*to_kv.weight": "key|value/2",
            "*to_out.weight": "out/2",
        },
        parts={"*to_kv.weight": halves(16)},
        nonlinearity={
            "*ff?.fn.fn.0.weight": "silu",
            "*conv.2.weight": "sigmoid",
            "*conv.4.weight": "silu",
        },
        outputs=("3.weight",),
    ),
}

_ATTENTION = {
    "perceiver": Truth(
        {"latents": "other", "to_logits.0.weight": "norm_scale", "to_logits.0.bias": "norm_shift"}
        | NORMS
        | LAYERS,
        branches=each(
            *("layers.{}.0.fn.to_out.weight", "layers.{}.1.fn.net.2.weight"),
            *("layers.{}.2.fn.to_out.weight", "layers.{}.3.fn.net.2.weight"),
            times=(0, 1),
        ),
        branch_layers=(2,) * 8,
        attention={
            "*.0.fn.to_q.weight": "query/1",
            "*.0.fn.to_kv.weight": "key|value/1",
            "*.0.fn.to_out.weight": "out/1",
            "*.2.fn.to_q.weight": "query/2",
            "*.2.fn.to_kv.weight": "key|value/2",
            "*.2.fn.to_out.weight": "out/2",
        },
        parts={"*.0.fn.to_kv.weight": halves(8), "*.2.fn.to_kv.weight": halves(16)},
        nonlinearity={"*net.0.weight": "gelu"},
        outputs=("to_logits.1.weight",),
    ),
    "transformer_xl": Truth(
        {"r_?_bias": "bias", "emb.weight": "embedding"}
        | {"*layer_norm.weight": "norm_scale", "*layer_norm.bias": "norm_shift"}
        | MANY
        | LAYERS,
        branches=each("layers.{}.o_net.weight", "ff.{}.3.weight", times=(0, 1)),
        branch_layers=(2,) * 4,
        attention={"*qkv_net.weight": f"{QKV}/2", "*o_net.weight": "out/2"},
        parts={"*qkv_net.weight": fused(16)},
        nonlinearity={"ff.?.0.weight": "relu"},
        outputs=("head.weight",),
    ),
    "llama_complex": Truth(
        {"*norm.weight": "norm_scale"} | LAYERS,
        branches=(("1.wo.weight",),),
        branch_layers=(2,),
        attention={
            "1.wq.weight": "query/4",
            "1.wk.weight": "key/2",
            "1.wv.weight": "value/2",
            "1.wo.weight": "out/4",
        },
        outputs=("2.weight",),
    ),
    "mla": Truth(
        {"*norm.weight": "norm_scale"} | LAYERS,
        branches=(("1.wo.weight",),),
        branch_layers=(3,),
        attention={
            "1.wq_b.weight": "query/2",
            "1.wkv_a.weight": "key/1",  # the rotary key, shared by all heads
            "1.wkv_b.weight": "key|value/2",
            "1.wo.weight": "out/2",
        },
        parts={
            "1.wkv_a.weight": (("rest", ((0, 6),)), ("key", ((6, 8),))),
            "1.wkv_b.weight": (("key", ((0, 4), (8, 12))), ("value", ((4, 8), (12, 16)))),
        },
        outputs=("2.weight",),
    ),
    "einsum_heads": Truth(
        {"1.ln.weight": "norm_scale", "1.ln.bias": "norm_shift", "*.w?": "weight", "*bq": "bias"}
        | LAYERS,
        branches=(("1.wo",),),
        branch_layers=(2,),
        attention={"1.wq": "query/2", "1.wk": "key/2", "1.wv": "value/2", "1.wo": "out/2"},
        outputs=("2.weight",),
    ),
}

_CALLS = {
    "gat": Truth(
        {"*bias": "bias", "*": "weight"},
        nonlinearity={"conv1.lin.weight": "elu", "*att*": "leaky_relu"},
        outputs=("conv2.lin.weight",),
    ),
    "tabnet": Truth(
        BN | LAYERS,
        branches=each("specific.{}.fc.weight", times=range(3)),
        branch_layers=(1,) * 3,
        nonlinearity={"*.fc.weight": "sigmoid"},
        outputs=("final.weight",),
    ),
    "vmap_ensemble": Truth(
        {"b1": "bias", "*": "weight"}, nonlinearity={"w1": "relu"}, outputs=("w2",)
    ),
    "in_place": Truth(
        LAYERS,
        branches=(("mix.weight",), ("down.weight",)),
        branch_layers=(1, 2),
        nonlinearity={"up.weight": "gelu"},
        outputs=("head.weight",),
    ),
    "out_argument": Truth(
        LAYERS,
        branches=(("down.weight",),),
        branch_layers=(2,),
        nonlinearity={"up.weight": "relu"},
        outputs=("head.weight",),
    ),
}

WILD_TRUTH: dict[str, Truth] = _IMAGES | _SEQUENCES | _ATTENTION | _CALLS
