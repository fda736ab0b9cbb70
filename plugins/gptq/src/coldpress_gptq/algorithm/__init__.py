"""The mathematics of GPTQ, a page each: the solver and its kernel, asymmetric targets, MagR, and refitted scales."""
