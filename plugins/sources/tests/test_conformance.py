"""The promises of the sources."""

from containers import fp8_folder, gpt_oss, modelopt_folder

from coldpress.testing import conformance

test_fp8 = conformance("fp8", kind="sources", settings={"example": fp8_folder})
test_mxfp4 = conformance("mxfp4", kind="sources", settings={"example": lambda folder: gpt_oss(folder)[0]})
test_modelopt = conformance("modelopt", kind="sources", settings={"example": modelopt_folder})
