"""The truth about perceptrons, tables, convolutional and recurrent nets."""

from tests.truth_kinds import LAYERS, NORMS, Truth, each

NORMALIZED = NORMS | LAYERS
BN = {"*bn?.weight": "norm_scale", "*bn?.bias": "norm_shift"}
VARIATIONS = {  # a magnitude follows from the matrix that it is for
    "*.original0": "other",
    "*.original*": "weight",
}
RECURRENT = {"*weight_hh*": "recurrent", "*weight_*": "weight", "*bias*": "bias"}

BASIC = {
    "relu_mlp": Truth(LAYERS, nonlinearity={"[03].weight": "relu"}, outputs=("5.weight",)),
    "tanh_mlp": Truth(
        LAYERS,
        nonlinearity={"22.weight": "linear", "*": "tanh"},
        outputs=("22.weight",),
    ),
    "selu_mlp": Truth(LAYERS, nonlinearity={"0.weight": "selu"}, outputs=("3.weight",)),
    "swiglu": Truth(
        {"*": "weight"}, nonlinearity={"gate.weight": "silu"}, outputs=("down.weight",)
    ),
    "swiglu_fused": Truth(
        LAYERS, nonlinearity={"gate_up.weight": "silu"}, outputs=("down.weight",)
    ),
    "gated_mlp": Truth(
        LAYERS,
        nonlinearity={"second.weight": "silu", "third.weight": "gelu"},
        outputs=("head.weight",),
    ),
    "residual_mlp": Truth(
        LAYERS,
        branches=each("down.{}.weight", times=range(4)),
        branch_layers=(2,) * 4,
        nonlinearity={"up.*": "elu"},
        outputs=("head.weight",),
    ),
    "padded": Truth(
        {"table.weight": "embedding", "bag.weight": "embedding"} | LAYERS,
        outputs=("head.weight",),
    ),
    "functional": Truth(
        {"first": "weight", "second": "weight", "shift": "bias", "temperature": "other"},
        nonlinearity={"first": "relu"},
        outputs=("second",),
    ),
    "bare": Truth(
        {
            "w_*": "weight",
            "b_in": "bias",
            "token": "other",
            "positions": "position",
            "scale": "norm_scale",
            "shift": "norm_shift",
            "mixing": "weight",
            "log_temperature": "other",
        }
        | LAYERS,
        nonlinearity={"mixing": "tanh"},
        outputs=("w_out",),
        unused=("unused.weight", "unused.bias"),
    ),
    "weight_normed": Truth(
        VARIATIONS | {"3.weight": "other", "*bias": "bias"},
        nonlinearity={"[02].*": "leaky_relu"},
        outputs=("4.parametrizations.weight.original1",),
    ),
    "spectral_normed": Truth(
        {"*.original": "weight", "*bias": "bias"},
        nonlinearity={"[02].*": "leaky_relu"},
        outputs=("5.parametrizations.weight.original",),
    ),
    "two_towers": Truth(
        {"text.0.weight": "embedding", "logit_scale": "other"} | LAYERS,
        nonlinearity={"image.0.weight": "relu", "text.1.weight": "gelu"},
        outputs=("image.2.weight", "text_out.weight"),
    ),
    "denoiser": Truth(
        LAYERS, nonlinearity={"encode.weight": "softplus"}, outputs=("decode.weight",)
    ),
}

CONVOLUTION = {
    "plain_cnn": Truth(
        LAYERS,
        nonlinearity={"first.weight": "relu", "second.weight": "relu"},
        outputs=("head.weight",),
    ),
    "residual_cnn": Truth(
        BN | LAYERS,
        branches=each("blocks.{}.conv2.weight", times=range(3)),
        branch_layers=(2, 2, 2),
        nonlinearity={"stem.weight": "relu", "*conv1.weight": "relu"},
        outputs=("head.weight",),
    ),
    "preactivation_cnn": Truth(
        {"bn.weight": "norm_scale", "bn.bias": "norm_shift"} | BN | LAYERS,
        branches=each("blocks.{}.conv2.weight", times=range(2)),
        branch_layers=(2, 2),
        nonlinearity={"stem.weight": "relu", "*conv1.weight": "relu"},
        outputs=("head.weight",),
    ),
    "bottleneck_cnn": Truth(
        {"stem.1.weight": "norm_scale", "stem.1.bias": "norm_shift"}
        | {"*downsample.1.weight": "norm_scale", "*downsample.1.bias": "norm_shift"}
        | BN
        | LAYERS,
        branches=each("blocks.{}.conv3.weight", times=range(3)),
        branch_layers=(3, 3, 3),
        nonlinearity={"stem.0.weight": "relu", "*conv[12].weight": "relu"},
        outputs=("head.weight",),
    ),
    "depthwise": Truth(
        {"3.weight": "norm_scale", "3.bias": "norm_shift"} | LAYERS,
        nonlinearity={"[02].weight": "silu"},
        outputs=("5.weight",),
    ),
    "inverted_residual": Truth(
        {"1.weight": "norm_scale", "1.bias": "norm_shift"}
        | {"?.bn.weight": "norm_scale", "?.bn.bias": "norm_shift"}
        | {"?.expand.1.weight": "norm_scale", "?.expand.1.bias": "norm_shift"}
        | {"?.project.1.weight": "norm_scale", "?.project.1.bias": "norm_shift"}
        | LAYERS,
        branches=each("{}.project.0.weight", times=(3, 4)),
        branch_layers=(3, 3),  # the gate's two are aside
        nonlinearity={
            "0.weight": "silu",
            "?.expand.0.weight": "silu",
            "?.depthwise.weight": "silu",
            "?.gate.reduce.weight": "silu",
            "?.gate.expand.weight": "sigmoid",
        },
        outputs=("7.weight",),
    ),
    "se_resnet": Truth(
        BN | LAYERS,
        branches=each("{}.conv2.weight", times=(2, 3)),
        branch_layers=(2, 2),
        nonlinearity={
            "0.weight": "relu",
            "?.conv1.weight": "relu",
            "?.squeeze.weight": "relu",
            "?.excite.weight": "sigmoid",
        },
        outputs=("6.weight",),
    ),
    "densenet": Truth(
        NORMALIZED,
        nonlinearity={"stem.weight": "relu", "convs.*": "relu"},
        outputs=("head.weight",),
    ),
    "unet_sum": Truth(
        LAYERS,
        branches=(("up2.weight",), ("up1.weight",)),
        branch_layers=(2, 5),  # mid, up2; enc2, mid, up2, dec2, up1
        nonlinearity={"enc?.weight": "relu", "mid.weight": "relu", "dec?.weight": "relu"},
        outputs=("head.weight",),
    ),
    "unet_concat": Truth(
        LAYERS,
        nonlinearity={"enc?.weight": "relu", "mid.weight": "relu", "dec?.weight": "relu"},
        outputs=("head.weight",),
    ),
    "generator": Truth(
        LAYERS,
        nonlinearity={"[02].weight": "leaky_relu", "4.weight": "tanh"},
        outputs=("4.weight",),
    ),
}

RECURRENCE = {
    "lstm": Truth(
        {"table.weight": "embedding"} | RECURRENT | LAYERS,
        nonlinearity={"lstm.*": "tanh"},
        outputs=("head.weight",),
    ),
    "bi_lstm": Truth(
        RECURRENT | LAYERS,
        nonlinearity={"lstm.weight_hr*": "linear", "lstm.*": "tanh"},
        outputs=("head.weight",),
    ),
    "gru": Truth(
        {"table.weight": "embedding"} | RECURRENT | LAYERS,
        nonlinearity={"gru.*": "tanh", "hidden.weight": "relu"},
        outputs=("head.weight",),
    ),
    "gru_cell": Truth(
        NORMS | RECURRENT | {"head.weight": "weight"},
        nonlinearity={"cell.*": "tanh"},
        outputs=("head.weight",),
    ),
}
