"""The mathematics of learned rounding: `rounding` is the quantizer and its gradients, `start` where it begins."""
