"""A scheme that no preset has."""

from coldpress import QuantizationArgs, Scheme, preset, preset_names
from coldpress_quantization import QuantizationModifier

weights = QuantizationArgs(num_bits=4, symmetric=False, strategy="group", group_size=32)
scheme = Scheme(targets=("Linear",), weights=weights, input_activations=preset("W8A8").input_activations)
modifier = QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
print(preset_names(), modifier.ignore)
QuantizationArgs(bits=4)  # wrong
Scheme(target=("Linear",), weights=weights)  # wrong
preset(4)  # wrong
