"""The transformer on one explicit mesh: layers, kernels, decoding, quantisation, warm starts."""
