"""Models: flax.nnx modules whose call returns ``(logits, hidden)``; one file each."""

TABLE: dict[str, tuple[str, str]] = {
    "mlp": ("clray.models.mlp:MLP", "fully connected network with any hidden widths"),
    "cnn": ("clray.models.cnn:CNN", "three convolution blocks with pooling, then two dense layers"),
}
