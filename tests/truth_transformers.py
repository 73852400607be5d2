"""The truth about models of the transformers package."""

from tests.truth_kinds import LAYERS, NORMS, Truth, each, fused

QKVO = {
    "*.q_proj.weight": "query/2",
    "*.k_proj.weight": "key/2",
    "*.v_proj.weight": "value/2",
    "*.o_proj.weight": "out/2",
}
QKV_OUT = {
    "*.q_proj.weight": "query/2",
    "*.k_proj.weight": "key/2",
    "*.v_proj.weight": "value/2",
    "*.out_proj.weight": "out/2",
}
BERT_STYLE = {
    "*.query.weight": "query/2",
    "*.key.weight": "key/2",
    "*.value.weight": "value/2",
    "*.attention.output.dense.weight": "out/2",
}
T5_STYLE = {
    "*.q.weight": "query/2",
    "*.k.weight": "key/2",
    "*.v.weight": "value/2",
    "*.o.weight": "out/2",
}
LN = {"*ln_?.weight": "norm_scale", "*ln_?.bias": "norm_shift"}
BERT_NORM = {"*LayerNorm.weight": "norm_scale", "*LayerNorm.bias": "norm_shift"}

_h = "transformer.h.{}."
_bert = "bert.encoder.layer.{}."
_llama = "model.layers.{}."
_encoder, _decoder = "encoder.block.{}.layer.", "decoder.block.{}.layer."
_resnet = "resnet.encoder.stages."
_swin = "swin.encoder.layers."
_w2v = "wav2vec2.encoder.layers.{}."
_mobile = "mobilevit.encoder.layer."

LANGUAGE = {
    "gpt2": Truth(
        {"*wte.weight": "embedding", "*wpe.weight": "position"} | LN | LAYERS,
        branches=each(f"{_h}attn.c_proj.weight", f"{_h}mlp.c_proj.weight", times=(0, 1)),
        branch_layers=(2,) * 4,
        attention={"*c_attn.weight": "query|key|value/2", "*attn.c_proj.weight": "out/2"},
        parts={"*c_attn.weight": fused(16)},  # columns: the layer stores (in, out)
        nonlinearity={"*c_fc.weight": "gelu"},
        outputs=("transformer.wte.weight",),
        ties=(("transformer.wte.weight", "lm_head.weight"),),
    ),
    "bert": Truth(
        {
            "*position_embeddings.weight": "position",
            "*word_embeddings.weight": "embedding",
            "*token_type_embeddings.weight": "embedding",
        }
        | BERT_NORM
        | LAYERS,
        branches=each(
            f"{_bert}attention.output.dense.weight", f"{_bert}output.dense.weight", times=(0, 1)
        ),
        branch_layers=(2,) * 4,
        attention=BERT_STYLE,
        nonlinearity={"*intermediate.dense.weight": "gelu", "*pooler.dense.weight": "tanh"},
        outputs=("classifier.weight",),
    ),
    "llama": Truth(
        {"*embed_tokens.weight": "embedding", "*norm.weight": "norm_scale", "*": "weight"},
        branches=each(
            f"{_llama}self_attn.o_proj.weight", f"{_llama}mlp.down_proj.weight", times=(0, 1)
        ),
        branch_layers=(2,) * 4,
        attention={
            "*.q_proj.weight": "query/4",
            "*.k_proj.weight": "key/2",
            "*.v_proj.weight": "value/2",
            "*.o_proj.weight": "out/4",
        },
        nonlinearity={"*gate_proj.weight": "silu"},
        outputs=("lm_head.weight",),
    ),
    "t5": Truth(
        {
            "shared.weight": "embedding",
            "*relative_attention_bias.weight": "other",
            "*layer_norm.weight": "norm_scale",
            "*": "weight",
        },
        branches=each(
            f"{_encoder}0.SelfAttention.o.weight",
            f"{_encoder}1.DenseReluDense.wo.weight",
            times=(0, 1),
        )
        + each(
            f"{_decoder}0.SelfAttention.o.weight",
            f"{_decoder}1.EncDecAttention.o.weight",
            f"{_decoder}2.DenseReluDense.wo.weight",
            times=(0, 1),
        ),
        branch_layers=(2,) * 10,
        attention=T5_STYLE,
        nonlinearity={"*wi.weight": "relu"},
        outputs=("shared.weight",),
        ties=(
            (
                "shared.weight",
                "encoder.embed_tokens.weight",
                "decoder.embed_tokens.weight",
                "lm_head.weight",
            ),
        ),
    ),
    "mamba": Truth(
        {
            "*embeddings.weight": "embedding",
            "*norm*.weight": "norm_scale",
            "*A_log": "other",
            "*.D": "other",
        }
        | LAYERS,
        branches=each("backbone.layers.{}.mixer.out_proj.weight", times=(0, 1)),
        # in_proj, conv1d, x_proj, dt_proj (the step sizes, which no sigmoid bounds), out_proj
        branch_layers=(5, 5),
        nonlinearity={
            "*in_proj.weight": "silu",  # half of it gates, through SiLU
            "*conv1d.weight": "silu",
            "*dt_proj.weight": "softplus",
        },
        outputs=("backbone.embeddings.weight",),
        ties=(("backbone.embeddings.weight", "lm_head.weight"),),
    ),
}

VISION = {
    "vit": Truth(
        {"*cls_token": "other", "*position_embeddings": "position"} | NORMS | LAYERS,
        branches=each(
            "vit.layers.{}.attention.o_proj.weight", "vit.layers.{}.mlp.fc2.weight", times=(0, 1)
        ),
        branch_layers=(2,) * 4,
        attention=QKVO,
        nonlinearity={"*fc1.weight": "gelu"},
        outputs=("classifier.weight",),
    ),
    "convnext": Truth(
        {
            "*layer_scale_parameter": "branch_scale",
            "*downsampling_layer.0.weight": "norm_scale",
            "*downsampling_layer.0.bias": "norm_shift",
        }
        | NORMS
        | LAYERS,
        branches=each(
            "convnext.encoder.stages.{}.pwconv2.weight",
            times=("0.layers.0", "1.layers.0", "1.layers.1"),
        ),
        branch_layers=(3, 3, 3),
        nonlinearity={"*pwconv1.weight": "gelu"},
        outputs=("classifier.weight",),
    ),
    "resnet": Truth(
        {"*normalization.weight": "norm_scale", "*normalization.bias": "norm_shift"} | LAYERS,
        branches=each(
            f"{_resnet}{{}}.layer.2.convolution.weight",
            times=("0.layers.0", "0.layers.1", "1.layers.0"),
        ),
        branch_layers=(3, 3, 3),
        nonlinearity={
            "resnet.embedder.*": "relu",
            "*.layer.0.convolution.weight": "relu",
            "*.layer.1.convolution.weight": "relu",
        },
        outputs=("classifier.1.weight",),
    ),
    "swin": Truth(
        {"*relative_position_bias_table": "other"} | NORMS | LAYERS,
        branches=each(
            f"{_swin}{{}}.attention.o_proj.weight",
            f"{_swin}{{}}.mlp.fc2.weight",
            times=("0.blocks.0", "0.blocks.1", "1.blocks.0"),
        ),
        branch_layers=(2,) * 6,
        attention={
            "*layers.0.*q_proj.weight": "query/2",
            "*layers.0.*k_proj.weight": "key/2",
            "*layers.0.*v_proj.weight": "value/2",
            "*layers.0.*o_proj.weight": "out/2",
            "*layers.1.*q_proj.weight": "query/4",
            "*layers.1.*k_proj.weight": "key/4",
            "*layers.1.*v_proj.weight": "value/4",
            "*layers.1.*o_proj.weight": "out/4",
        },
        nonlinearity={"*fc1.weight": "gelu"},
        outputs=("classifier.weight",),
    ),
    "mobilevit": Truth(
        {"*normalization.weight": "norm_scale", "*normalization.bias": "norm_shift"}
        | NORMS
        | LAYERS,
        branches=each(
            f"{_mobile}{{}}.reduce_1x1.convolution.weight",
            times=("0.layer.0", "1.layer.1", "1.layer.2"),
        )
        + each(
            f"{_mobile}{{}}.attention.output.dense.weight",
            f"{_mobile}{{}}.output.dense.weight",
            times=[
                f"{stage}.transformer.layer.{layer}"
                for stage, depth in ((2, 2), (3, 4), (4, 3))
                for layer in range(depth)
            ],
        ),
        branch_layers=(3,) * 3 + (2,) * 18,
        attention=BERT_STYLE,
        nonlinearity={
            "*reduce_1x1.convolution.weight": "linear",
            "*conv_1x1.convolution.weight": "linear",
            "*convolution.weight": "silu",
            "*intermediate.dense.weight": "silu",
        },
        outputs=("classifier.weight",),
    ),
}

SPEECH_AND_PAIRS = {
    "whisper": Truth(
        {
            "*embed_positions.weight": "position",
            "*embed_tokens.weight": "embedding",
        }
        | NORMS
        | LAYERS,
        branches=(
            ("model.encoder.layers.0.self_attn.out_proj.weight",),
            ("model.encoder.layers.0.fc2.weight",),
            ("model.decoder.layers.0.self_attn.out_proj.weight",),
            ("model.decoder.layers.0.encoder_attn.out_proj.weight",),
            ("model.decoder.layers.0.fc2.weight",),
        ),
        branch_layers=(2,) * 5,
        attention={
            "*decoder*.q_proj.weight": "query/4",
            "*decoder*.k_proj.weight": "key/4",
            "*decoder*.v_proj.weight": "value/4",
            "*decoder*.out_proj.weight": "out/4",
        }
        | QKV_OUT,
        nonlinearity={"*conv?.weight": "gelu", "*fc1.weight": "gelu"},
        outputs=("model.decoder.embed_tokens.weight",),
        ties=(("model.decoder.embed_tokens.weight", "proj_out.weight"),),
    ),
    "wav2vec2": Truth(
        {"*.original0": "other", "*.original1": "weight"} | NORMS | LAYERS,
        branches=(  # positions are a convolution of the features, added to them
            ("wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1",),
            *each(
                f"{_w2v}attention.out_proj.weight",
                f"{_w2v}feed_forward.output_dense.weight",
                times=(0, 1),
            ),
        ),
        branch_layers=(1, 2, 2, 2, 2),
        attention=QKV_OUT,
        nonlinearity={
            "*conv.weight": "gelu",
            "*.original1": "gelu",
            "*intermediate_dense.weight": "gelu",
        },
        outputs=("lm_head.weight",),
    ),
    "clip": Truth(
        {
            "logit_scale": "other",
            "*class_embedding": "other",
            "*token_embedding.weight": "embedding",
            "*position_embedding.weight": "position",
            "*layrnorm.weight": "norm_scale",
            "*layrnorm.bias": "norm_shift",
        }
        | NORMS
        | LAYERS,
        branches=each(  # the images come first
            "{}_model.encoder.layers.0.self_attn.out_proj.weight",
            "{}_model.encoder.layers.0.mlp.fc2.weight",
            times=("vision", "text"),
        ),
        branch_layers=(2,) * 4,
        attention=QKV_OUT,
        nonlinearity={"*fc1.weight": "gelu"},
        outputs=("visual_projection.weight", "text_projection.weight"),
    ),
}
