"""Names of plugins that a run takes where its user names none."""

# The only plugin names that core holds: a default must be a name that a user may override, and these are the
# ones that the distributions beside core offer.  Core looks them up like any other name and never imports them.
DEFAULT_PIPELINE = "data_free"  # when no modifier of the recipe reads data
DEFAULT_CALIBRATION_PIPELINE = "sequential"  # when one does
DEFAULT_FORMAT = "compressed-tensors"
DENSE_FORMAT = "dense"  # what save_compressed=False asks for
DEFAULT_WEIGHT_OBSERVER = "memoryless_minmax"
DEFAULT_ACTIVATION_OBSERVER = "minmax"
DEFAULT_DATASET = "coldpress/short"  # what the demo calibrates with, and errors propose
DEFAULT_QUANTIZER = "QuantizationModifier"  # what a scheme by name, without a recipe, is applied with
DEFAULT_ALGORITHM = "rtn"  # the ready recipe that a scheme by name is applied with
FEW_BITS_ALGORITHM = "gptq"  # the same for weights of few bits, where rounding alone loses much
FEW_BITS = 4
QUALITIES = {  # ready recipes for --quality: of a scheme, and of --bits or --size
    "fast": ("rtn", "autobits-rtn"),
    "balanced": ("gptq", "autobits"),
    "best": ("gptq-guided", "autobits-guided"),
}
DEMO_MODEL = "smollm2"  # what the demo compresses; a source knows it by this name

# What `coldpress compress` leaves alone unless told otherwise: the output head, and the routers of mixtures, for whose
# quantized weights engines have no place.
DEFAULT_IGNORE = ("lm_head", r"re:(.*\.)?(gate|shared_expert_gate|router)(\.\w+)?$")
