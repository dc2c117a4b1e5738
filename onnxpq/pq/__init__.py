"""Product quantization of a matrix: the mathematics, free of ONNX.

`tensor`, `packing` and `reference` need numpy alone, so that reading a compressed model does not need torch;
`kmeans` and `codec` are batched torch.
"""
